"""Fully sharded data parallelism: every process holds a shard of weights, gradients and optimizer state.

FSDP2, ``torch.distributed.fsdp.fully_shard`` (Zhao et al.: *PyTorch FSDP*, 2023, arXiv:2304.11277): the weights of a
block are gathered on all processes before it computes, and freed afterwards. Torch's function rather than Accelerate's
FSDP, which on a CPU exits 0 and has sharded nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_dist.distributed.engine import SHARDED, Engine, Limit
from cifar_dist.distributed.wrapped_model import InferenceModel, WrappedModel
from cifar_dist.errors import UserError
from cifar_dist.launch.typed_command import command_with_ddp


class FullySharded(Engine):
    """FSDP2 over all processes of the job; one process has a shard too, of everything."""

    limits = (
        *SHARDED,
        Limit("train.compile", lambda value: value != "no", "needs one process, DDP or DeepSpeed"),
    )
    shards = "weights, gradients and optimizer state"
    kind, description = "fsdp", "FSDP"

    def start_accelerator(self, cpu: bool) -> Accelerator:
        with _without_accelerate_fsdp():
            return super().start_accelerator(cpu)

    def wrap(self, module: nn.Module, optimizer: Optimizer) -> WrappedModel:
        if not dist.is_initialized():  # one process, which no launcher started
            raise UserError("FSDP was asked for and there is no process group; start with launch/fsdp.yaml")
        self._shard(module, optimizer)
        if not is_sharded(module, self.ranks.world_size):
            raise UserError("FSDP was asked for and the weights are not sharded; start with launch/fsdp.yaml")
        wrapper = self.accelerator.prepare_model(module, evaluation_mode=True)  # adds autocast and no wrapper
        return self.build_model(_FullyShardedModel, module, wrapper, self.accelerator.prepare_optimizer(optimizer))

    def prepare_for_inference(self, module: nn.Module) -> InferenceModel:
        model = super().prepare_for_inference(module)
        if dist.is_initialized():
            self._shard(module)
        return model

    def _shard(self, module: nn.Module, optimizer: Optimizer | None = None) -> None:
        # It splits weights along their first dimension; the images may stay channels-last.
        module.to(memory_format=torch.contiguous_format)
        shard(module, optimizer, self.ranks.device, self.ranks.world_size)


class _FullyShardedModel(WrappedModel):
    is_sharded = True


def shard(module: nn.Module, optimizer: Optimizer | None, device: torch.device, world_size: int) -> None:
    """Leave in ``module`` and its ``optimizer`` this process's shard of each parameter: rows of its first dimension.

    Every process must call it with equal weights, contiguous and on ``device``. Collective.

    Raises:
        UserError: a module that cannot be sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = {id(parameter): name for name, parameter in module.named_parameters()}
    mesh = init_device_mesh(device.type, (world_size,))
    try:
        for block in (*_blocks(module), module):  # the module itself takes the parameters that no block has
            block.register_forward_hook(_clone_views)
            fully_shard(block, mesh=mesh, reshard_after_forward=True)  # else a prediction leaves the root's unsharded
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"FSDP cannot shard this network ({error}); {command_with_ddp()}") from None
    shards = dict(module.named_parameters())
    for group in optimizer.param_groups if optimizer is not None else ():
        group["params"] = [shards[names[id(parameter)]] for parameter in group["params"]]


def is_sharded(module: nn.Module, world_size: int) -> bool:
    """Whether every parameter is sharded over ``world_size`` processes."""
    from torch.distributed.tensor import DTensor

    return all(isinstance(p, DTensor) and p.device_mesh.size() == world_size for p in module.parameters())


def _clone_views(_block: nn.Module, _inputs: object, output: object) -> object:
    """Clone a block's output that is a view: FSDP's hook on a view is lost when someone adds to it in place."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The children of a network that compute one after the other; containers are replaced by what they hold."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


@contextmanager
def _without_accelerate_fsdp() -> Iterator[None]:
    """Hide from Accelerate, inside, that the launcher's config says FSDP: it joins the processes as for DDP."""
    asked = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ["ACCELERATE_USE_FSDP"] = asked
