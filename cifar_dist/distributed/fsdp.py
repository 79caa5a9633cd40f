"""Fully sharded data parallelism: a process keeps its part of weights, gradients and optimizer state.

FSDP2, ``torch.distributed.fsdp.fully_shard`` (Zhao et al.: *PyTorch FSDP*, 2023, arXiv:2304.11277): a block's weights
are put together on all processes before it computes, and let go afterwards. Torch's function rather than Accelerate's
FSDP, which on a CPU exits 0 and has sharded nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_dist.errors import UserError


def shard(module: nn.Module, optimizer: Optimizer, device: torch.device, processes: int) -> None:
    """Leave in ``module`` and ``optimizer`` this process's part of each parameter: rows of its first dimension.

    Every process has to come with the same weights, contiguous and on ``device``. Collective.

    Raises:
        UserError: a module that cannot be sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = {id(parameter): name for name, parameter in module.named_parameters()}
    mesh = init_device_mesh(device.type, (processes,))
    try:
        for block in (*_blocks(module), module):  # the last one takes what is in no block
            block.register_forward_hook(_own)
            fully_shard(block, mesh=mesh)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"FSDP cannot shard this network ({error}); use launch/ddp.yaml") from None
    parts = dict(module.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [parts[names[id(parameter)]] for parameter in group["params"]]


def is_sharded(module: nn.Module, processes: int) -> bool:
    """Whether all of its parameters are parts, one on each of the processes."""
    from torch.distributed.tensor import DTensor

    return all(isinstance(p, DTensor) and p.device_mesh.size() == processes for p in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """All of what ``tensor`` is a part of; itself when it is no part. Collective for parts."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    full: Tensor = tensor.full_tensor()
    return full


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """A copy of ``value``, the same on all processes, on the device of ``like``; the part that ``like`` is one of."""
    if not hasattr(like, "full_tensor"):
        return value.to(like.device, copy=True)

    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _own(_block: nn.Module, _inputs: object, output: object) -> object:
    """What a block gives, never a view: FSDP's hook on a view is lost when someone adds to it in place."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a network that compute one after the other; lists of modules are none themselves."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child
