"""The only file that knows Accelerate, and that starts the process group, DeepSpeed or FSDP.

An :class:`Engine` is a process's place in the job, and what it trains: it
wraps model and optimizer, runs one optimizer step, and asserts that it got what the launcher was asked for. What goes
into a checkpoint leaves it as full tensors by parameter name, the same whichever engine wrote it, so a run may resume
on another number of processes or another engine.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from cifar_dist.config import TrainConfig
from cifar_dist.cpu.malloc import keep_freed_memory
from cifar_dist.cpu.onednn import spare_strided_1x1
from cifar_dist.cpu.openmp import share_cores
from cifar_dist.distributed.fsdp import is_sharded, shard, whole
from cifar_dist.distributed.launch_checks import asked_for, check_launch, launched_processes, local_processes
from cifar_dist.distributed.optimizer_state import by_parameter, collect, collect_zero, restore, restore_zero
from cifar_dist.distributed.precision import Precision
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.errors import TrainingFailedError, UserError
from cifar_dist.optim.sam import ascended

# Above the slowest checkpoint or evaluation that one rank may do alone; a rank that dies ends the job long before.
_TIMEOUT = timedelta(minutes=30)


class Engine(Ranks):
    """This process's place in the job, and what it trains there.

    Attributes:
        kind: ``single``, ``ddp``, ``fsdp``, ``zero1`` or ``zero2``.
        precision: what all processes compute in.
    """

    def __init__(
        self, train: TrainConfig | None = None, *, clip_norm: float = 0.0, sam_rho: float = 0.0, processes: int = 0
    ) -> None:
        """Start the process group and check that it is the one that was asked for.

        Args:
            train: precision, accumulation and batch size; None where nothing is trained.
            clip_norm: global gradient norm to clip at, 0 for none.
            sam_rho: radius of sharpness-aware minimisation, 0 for none.
            processes: refuse any other number of processes; 0 for any.

        Raises:
            UserError: not the processes or wrapper that were asked for, or a precision this device cannot do.
        """
        check_launch(processes)
        self._train = train or TrainConfig()
        self._clip_norm, self._sam_rho = clip_norm, sam_rho
        deepspeed, fsdp = asked_for("DEEPSPEED"), asked_for("FSDP") and launched_processes() > 1
        cpu = not torch.cuda.is_available() or asked_for("CPU")
        if cpu:
            share_cores(self._train.threads, local_processes())
            keep_freed_memory()
        self.precision = Precision.of(self._train.precision, cpu=cpu, sharded=deepspeed or fsdp)
        if fsdp and self._train.compile:
            raise UserError("train.compile is not for FSDP; use launch/ddp.yaml, or --train.compile false")
        if cpu and deepspeed:
            _skip_deepspeed_build()
        # DeepSpeed picks its own device and ignores Accelerate's cpu flag, with which it would silently be DDP.
        group = InitProcessGroupKwargs(backend="gloo" if cpu and deepspeed else None, timeout=_TIMEOUT)
        with _without_its_fsdp():
            self._accelerator = Accelerator(
                cpu=cpu and not deepspeed,
                mixed_precision="no" if deepspeed else self.precision.name,
                dynamo_backend="inductor" if self._train.compile else "no",
                gradient_accumulation_plugin=GradientAccumulationPlugin(
                    num_steps=self._train.accumulate, sync_with_dataloader=False
                ),
                kwargs_handlers=[group],
            )
        place = self._accelerator
        super().__init__(
            place.process_index, place.num_processes, place.device, first_of_node=place.is_local_main_process
        )
        self.kind = "fsdp" if fsdp else self._kind(deepspeed)
        self.model: nn.Module | None = None
        self._module: nn.Module | None = None
        self._replica: nn.Module | None = None  # with whole weights, to be evaluated where the module has parts
        self._optimizer: Any = None
        if self.processes != launched_processes():
            raise UserError(
                f"the launcher started {launched_processes()} processes and {self.processes} joined; "
                "use one of the files in launch/: accelerate launch --config_file launch/cpu.yaml train.py ..."
            )
        found = sorted(set(self.gather_objects(self.precision.shown)))
        if len(found) > 1:
            raise UserError(f"the processes' devices differ: {' and '.join(found)}; say which, as --train.precision no")

    def _kind(self, deepspeed: bool) -> str:
        if deepspeed:
            plugin = self._accelerator.state.deepspeed_plugin
            if plugin is None:
                raise UserError("DeepSpeed was asked for and is not in use; start with launch/zero2.yaml")
            if plugin.zero_stage not in (1, 2):  # at 3 no rank has the weights that a checkpoint is made of
                raise UserError(f"DeepSpeed ZeRO-{plugin.zero_stage} is not supported yet; use launch/zero2.yaml")
            return f"zero{plugin.zero_stage}"
        return "ddp" if self.processes > 1 else "single"

    @property
    def wrapper(self) -> str:
        """What synchronises the processes, for the reader."""
        own = {"single": "one process", "ddp": "DDP", "fsdp": "FSDP"}
        return own.get(self.kind, f"DeepSpeed ZeRO-{self.kind[-1]}")

    @property
    def device_name(self) -> str:
        """What a process computes on, for the reader."""
        return f"cuda ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else self.device.type

    # ---- model and optimizer ----------------------------------------------------------------------------------

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
        """Move ``module`` to the device, wrap it, and assert that the wrapper is the right one."""
        self._module = module.to(self.device)
        if optimizer is None:
            self.model = module
            return module
        if self.device.type == "cpu":
            spare_strided_1x1(module)
        if self.kind not in ("single", "ddp"):
            # They cut or flatten weights in their plain order; the images may stay channels-last.
            self._module.to(memory_format=torch.contiguous_format)
        if self.kind == "fsdp":
            self._replica = copy.deepcopy(self._module)
            shard(self._module, optimizer, self.device, self.processes)
            self.model = self._accelerator.prepare_model(module, evaluation_mode=True)  # its autocast, and no wrapper
            self._optimizer = self._accelerator.prepare_optimizer(optimizer)
        else:
            if self.kind.startswith("zero"):
                self._configure_deepspeed()
            self.model, self._optimizer = self._accelerator.prepare(module, optimizer)
        self._assert_wrapped()
        return self.model

    def _configure_deepspeed(self) -> None:
        settings = self._accelerator.state.deepspeed_plugin.deepspeed_config
        train = self._train
        settings["train_micro_batch_size_per_gpu"] = train.batch_size // (self.processes * train.accumulate)
        settings["train_batch_size"] = train.batch_size
        settings["gradient_accumulation_steps"] = train.accumulate
        settings["gradient_clipping"] = self._clip_norm
        settings["zero_allow_untested_optimizer"] = True
        settings["steps_per_print"] = 2**31
        # Autocast rather than DeepSpeed's own bf16 mode: the same arithmetic as DDP, and BatchNorm works on a CPU.
        if self.precision.name == "bf16":
            settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}

    def _assert_wrapped(self) -> None:
        assert self._module is not None
        if self.kind == "fsdp":
            if not is_sharded(self._module, self.processes):
                raise UserError("FSDP was asked for and the weights are not sharded; start with launch/fsdp.yaml")
            return
        wrapper = type(getattr(self.model, "_orig_mod", self.model)).__name__
        wanted = {"single": None, "ddp": "DistributedDataParallel"}.get(self.kind, "DeepSpeedEngine")
        if wanted is not None and wrapper != wanted:
            raise UserError(
                f"{self.kind} was asked for and the model's wrapper is {wrapper}, not {wanted}; "
                "start with one of the files in launch/"
            )

    def step(self, losses: Callable[[int], Tensor], lr: float) -> None:
        """One optimizer step: forward and backward of every accumulation step (twice for SAM), clip, update.

        Args:
            losses: gives the loss of accumulation step i, a scalar that is this process's share such that the
                gradient of the global batch is the sum over processes and accumulation steps.
            lr: learning rate of this step.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        deepspeed = self.kind.startswith("zero")
        if not deepspeed:  # DeepSpeed clears its own, earlier; and it clips and steps in its backward
            self._optimizer.optimizer.zero_grad()
        self._backward(losses)
        if self._sam_rho:
            assert self._module is not None
            with ascended(self._module, self._sam_rho):
                self._backward(losses)
        if self._clip_norm and not deepspeed:
            self._accelerator.clip_grad_norm_(self._parameters().values(), self._clip_norm)
        self._optimizer.step()

    def _backward(self, losses: Callable[[int], Tensor]) -> None:
        """Forward and backward of every accumulation step; the gradients are synchronised in the last one."""
        # Each engine averages over processes, and accumulation divides; the losses given are shares of a mean.
        scale = self.processes * self._train.accumulate
        for index in range(self._train.accumulate):
            with self._accelerator.accumulate(self.model):
                self._accelerator.backward(losses(index) * scale)

    @torch.no_grad()
    def infer(self, images: Tensor) -> Tensor:
        """Logits float32 [n, classes] of normalised images float32 [n, c, h, w], in the run's precision.

        The bare module is asked, with whole weights: the forward of DDP and FSDP is collective, and ranks may have
        different numbers of batches.
        """
        module = self._replica or self._module
        assert module is not None
        dtype = self.precision.autocast
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            logits: Tensor = module(images)
        return logits.float()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode with one set of batch statistics on all ranks; training mode after it. Collective."""
        assert self._module is not None
        self.sync_buffers()
        if self._replica is not None:
            self._replica.load_state_dict({name: whole(value) for name, value in self._module.state_dict().items()})
            self._replica.eval()
        was_training = self._module.training
        self._module.eval()
        try:
            yield
        finally:
            self._module.train(was_training)

    def assert_synchronised(self) -> None:
        """After a first step: gradients (or, where an engine has given them up, weights) are equal on all ranks.

        Raises:
            TrainingFailedError: they differ; the processes train separate models.
        """
        tensors = [whole(p.grad if p.grad is not None else p.detach()) for p in self._parameters().values()]
        fingerprint = torch.stack([t.double().sum() for t in tensors] + [t.double().square().sum() for t in tensors])
        everyone = self.gather(fingerprint[None])
        if not torch.equal(everyone, everyone[:1].expand_as(everyone)) and bool(torch.isfinite(everyone).all()):
            raise TrainingFailedError(
                f"the {self.processes} processes hold different gradients after their first step: they do not "
                "synchronise; start with one of the files in launch/"
            )

    def _parameters(self) -> dict[str, nn.Parameter]:
        assert self._module is not None
        return {name: p for name, p in self._module.named_parameters() if p.requires_grad}

    def sync_buffers(self) -> None:
        """Give every rank the batch statistics of rank 0, which are the run's."""
        assert self._module is not None
        if self.processes > 1:
            for buffer in self._module.buffers():
                dist.broadcast(buffer, src=0)

    # ---- state ------------------------------------------------------------------------------------------------

    def model_state(self) -> dict[str, Tensor]:
        """Full weights and buffers by name, on the CPU. Collective."""
        assert self._module is not None
        self.sync_buffers()
        state = self._module.state_dict()
        return {name: whole(value.detach()).cpu().contiguous() for name, value in state.items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Full optimizer state, see :mod:`cifar_dist.distributed.optimizer_state`. Collective."""
        assert self._optimizer is not None
        taken = collect_zero if self.kind.startswith("zero") else collect
        return taken(self._optimizer.optimizer, self._parameters())

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`optimizer_state` gave, whichever engine gave it.

        Raises:
            UserError: the state belongs to another model or optimizer.
        """
        parameters = self._parameters()
        put = restore_zero if self.kind.startswith("zero") else restore
        put(self._optimizer.optimizer, parameters, by_parameter(state, parameters))

    def scaler_state(self) -> dict[str, float]:
        """The fp16 loss scaler's numbers; empty without one."""
        scaler = self._accelerator.scaler
        return dict(scaler.state_dict()) if scaler is not None else {}

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(dict(state))

    def close(self) -> None:
        """Tear the process group down while the interpreter is whole: left to its exit, one job in thirty aborts."""
        self.model = self._module = self._replica = self._optimizer = None
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _without_its_fsdp() -> Iterator[None]:
    """Accelerate starts the processes as for DDP inside, see :mod:`cifar_dist.distributed.fsdp`."""
    asked = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ["ACCELERATE_USE_FSDP"] = asked


def _skip_deepspeed_build() -> None:
    """Spare a CPU process DeepSpeed's shared-memory all-reduce, which only its inference calls.

    It is compiled at the first start: that takes a compiler and minutes, and one cut short leaves a lock that
    every later start waits for.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}
