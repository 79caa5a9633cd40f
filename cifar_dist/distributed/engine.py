"""An engine joins the processes of a job and wraps a network so that they train it together.

One engine per file: :mod:`~cifar_dist.distributed.data_parallel` (one process, DDP),
:mod:`~cifar_dist.distributed.fixed_parts`, :mod:`~cifar_dist.distributed.deepspeed_zero` and
:mod:`~cifar_dist.distributed.fully_sharded`. Each implements :meth:`Engine.wrap` and declares in ``limits`` what it
cannot do. :mod:`~cifar_dist.distributed.start` chooses one, and refuses what it declares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import ClassVar, Final

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, KwargsHandler, TorchDynamoPlugin
from torch import nn

from cifar_dist.config import Config, plugins
from cifar_dist.config.optim import MuonConfig
from cifar_dist.config.plugin_errors import describe_value
from cifar_dist.config.toml_text import inline_toml
from cifar_dist.cpu.conv2d import replace_convolutions
from cifar_dist.cpu.onednn import avoid_strided_1x1
from cifar_dist.distributed.agreement import StopPoll
from cifar_dist.distributed.arithmetic import describe_arithmetic
from cifar_dist.distributed.loss_scaler import LossScaler, count_steps_on_device
from cifar_dist.distributed.precision import Precision
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.stop_requests import StopRequests
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.distributed.wrapped_model import InferenceModel, WrappedModel
from cifar_dist.errors import UserError
from cifar_dist.launch.launched import launched_processes
from cifar_dist.launch.typed_command import command_with_ddp


@dataclass(frozen=True)
class Limit:
    """A setting that an engine cannot honour.

    Attributes:
        key: the setting, as ``optim.name``.
        refuses: whether a value of it is refused.
        reason: completes "KEY = VALUE ...".
        remedy: what to type instead; empty for what starts DDP.
        refuses_section: whether the section is refused whatever the value, which for a plug-in is the name of a file.
    """

    key: str
    refuses: Callable[[object], bool]
    reason: str
    remedy: str = ""
    refuses_section: Callable[[object], bool] = lambda _: False

    def check(self, config: Config, engine: str) -> None:
        """Raises UserError where ``config`` has a value that this limit refuses; ``engine`` is named in the message."""
        section_name, _, name = self.key.partition(".")
        section = getattr(config, section_name)
        value = getattr(section, name, None)
        if self.refuses(value) or self.refuses_section(section):
            is_plugin = plugins.is_spec(config.train.engine)
            remedy = self.remedy or ("use --train.engine auto" if is_plugin else command_with_ddp())
            raise UserError(f"{self.key} = {inline_toml(value)} {self.reason}, not {engine}; {remedy}")


NO_PARTS = Limit("train.parts", bool, "needs one process or DDP")
DDP_COMPRESSES = Limit("train.compress_gradients", lambda value: value != "no", "needs DDP")

_NEEDS_WEIGHTS = "needs full weights and gradients on each process"
SHARDED: Final = (
    NO_PARTS,
    DDP_COMPRESSES,
    Limit("train.precision", lambda value: value == "fp16", "needs one process or DDP"),
    Limit(
        "optim.name",
        lambda value: value == "muon",
        _NEEDS_WEIGHTS,
        refuses_section=lambda optim: isinstance(optim, MuonConfig),
    ),
    Limit("optim.sam_rho", bool, _NEEDS_WEIGHTS),
)
"""Limits of every engine that shards weights, gradients or optimizer state."""


class Engine(ABC):
    """One process of a job, joined with the others. Construction is collective.

    Args:
        config: precision, gradient accumulation, clipping and compilation of the run.
        cpu: compute on the CPU, over gloo.

    Attributes:
        limits: what this engine cannot do.
        shards: of what a process holds a part only, for a reader.
        updates_on_cpu: whether the optimizer computes there, wherever the network does.
        has_other_groups: see :class:`~cifar_dist.distributed.ranks.Ranks`.
        rounds_by_processes: whether another number of processes rounds differently.
        kind: its short name in messages, for example ``ddp``.
        description: its name for a reader, for example ``DDP``.
        precision: what all processes compute in.
        ranks: this process among all of the job.
        signals: requests to stop that this process receives.

    Raises:
        UserError: fewer processes joined than were launched, or a precision that this device lacks.
    """

    limits: ClassVar[tuple[Limit, ...]] = (NO_PARTS, DDP_COMPRESSES)
    shards: ClassVar[str] = "nothing"
    updates_on_cpu = False
    has_other_groups: ClassVar[bool] = False
    rounds_by_processes: ClassVar[bool] = True
    kind: str
    description: str
    signals: StopSignals

    def __init_subclass__(cls) -> None:
        """Name an engine that says nothing of it by its class."""
        super().__init_subclass__()
        for name in ("kind", "description"):
            if not hasattr(cls, name):
                setattr(cls, name, cls.__name__)

    def __init__(self, config: Config, *, cpu: bool) -> None:
        self._config = config
        scales_loss = not any(limit.key == "train.precision" and limit.refuses("fp16") for limit in self.limits)
        self.precision = Precision.resolve(config.train.precision, cpu=cpu, scales_loss=scales_loss)
        self.accelerator = self.start_accelerator(cpu)
        place = self.accelerator
        self._scaler_at_start = place.scaler.state_dict() if place.scaler is not None else {}
        self.ranks = Ranks(
            place.process_index,
            place.num_processes,
            place.device,
            first_of_node=place.is_local_main_process,
            has_other_groups=self.has_other_groups,
        )
        self._check_processes()

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> WrappedModel:
        """Move ``module`` to this process's device and wrap it for training. Collective.

        Ends the training of a module that was prepared before, as by each range test of ``lr-find``.

        Raises:
            UserError: the wrapper is not the one that the launcher was asked for, or a plug-in's engine returns none.
        """
        self._release_former()
        module.to(self.ranks.device)
        if self.ranks.device.type == "cpu":
            avoid_strided_1x1(module)
            replace_convolutions(module)
        self._take_weights_of_rank_0(module)
        if self.accelerator.scaler is not None:
            count_steps_on_device(optimizer)
        model: object = self.wrap(module, optimizer)
        if not isinstance(model, WrappedModel):
            returned = describe_value(model)
            raise UserError(
                f"train.engine: wrap of {self.description} returned {returned}; return what build_model does"
            )
        return model

    def _take_weights_of_rank_0(self, module: nn.Module) -> None:
        """A plug-in's network may draw its weights from a generator that no seed of the run sets, on each rank."""
        if self.ranks.world_size == 1:
            return
        for tensor in (*module.parameters(), *module.buffers()):
            weights = tensor.detach()
            sent = weights.contiguous()
            dist.broadcast(sent, src=0)
            weights.copy_(sent)

    def prepare_for_inference(self, module: nn.Module) -> InferenceModel:
        """Move ``module`` to this process's device; it is not trained. Collective."""
        if self.ranks.device.type == "cpu":
            replace_convolutions(module)
        return InferenceModel(module.to(self.ranks.device), self.ranks, self.precision)

    @cached_property
    def poll(self) -> StopPoll:
        """Asks all ranks whether one of them has received a signal to stop."""
        return StopPoll(self.ranks, StopRequests(self.signals))

    @property
    def is_sharding(self) -> bool:
        """Whether a process holds only a part of the weights or of the optimizer state."""
        return self.shards != Engine.shards

    @property
    def device_name(self) -> str:
        """The device that a process computes on, for a reader."""
        device = self.ranks.device
        return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type

    @property
    def cpu_threads(self) -> int:
        """The threads that a process computes with on a CPU; 0 on a GPU."""
        return torch.get_num_threads() if self.ranks.device.type == "cpu" else 0

    @property
    def arithmetic(self) -> str:
        """What a process computes in, for a reader."""
        return describe_arithmetic(self._config.train, self.precision.label, cpu=self.ranks.device.type == "cpu")

    @property
    def compile_mode(self) -> str:
        """``train.compile`` of the run."""
        return self._config.train.compile

    def close(self) -> None:
        """Destroy the process group explicitly: left to the interpreter's exit, one gloo job in thirty aborts."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    @abstractmethod
    def wrap(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> WrappedModel:
        """Wrap ``module``, which is on its device, and ``optimizer``; ends with :meth:`build_model`. Collective."""

    def build_model(
        self,
        create: Callable[..., WrappedModel],
        module: nn.Module,
        wrapper: nn.Module,
        optimizer: AcceleratedOptimizer,
    ) -> WrappedModel:
        """Create the model of :meth:`wrap`: ``create`` is :class:`WrappedModel` or derives from it."""
        return create(
            module,
            wrapper,
            optimizer,
            ranks=self.ranks,
            precision=self.precision,
            accelerator=self.accelerator,
            accumulate=self._config.train.accumulate,
            clip_norm=self._config.optim.clip_norm,
        )

    def start_accelerator(self, cpu: bool) -> Accelerator:
        """Join the process group. Calls :meth:`create_accelerator` with what this engine requires."""
        return self.create_accelerator(cpu=cpu, mixed_precision=self.precision.name)

    def create_accelerator(
        self, *, cpu: bool, mixed_precision: str, backend: str | None = None, handlers: Sequence[KwargsHandler] = ()
    ) -> Accelerator:
        """Create Accelerate's object, which joins the process group.

        Args:
            cpu, mixed_precision: as for ``Accelerator``.
            backend: of the process group; None for Accelerate's choice.
            handlers: further options, as for ``Accelerator``.
        """
        train, timeout = self._config.train, timedelta(seconds=self._config.run.collective_timeout)
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=mixed_precision,
            # Static shapes: batches of another size are not compiled, see WrappedModel.
            dynamo_plugin=TorchDynamoPlugin(
                backend="no" if train.compile == "no" else "inductor",
                mode="default" if train.compile == "no" else train.compile,
                dynamic=False,
            ),
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=train.accumulate, sync_with_dataloader=False
            ),
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=timeout), *handlers],
        )
        if type(accelerator.scaler) is torch.amp.GradScaler:
            accelerator.scaler = LossScaler.like(accelerator.scaler, accelerator.device)
        return accelerator

    def _release_former(self) -> None:
        """Forget the network and optimizer that were prepared before: Accelerate keeps them, and clips them, too."""
        if self.accelerator._models or self.accelerator._optimizers:
            self.accelerator.free_memory()
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(self._scaler_at_start)

    def _check_processes(self) -> None:
        if self.ranks.world_size != launched_processes():
            raise UserError(
                f"the launcher started {launched_processes()} processes and {self.ranks.world_size} joined; "
                "use one of the files in launch/: accelerate launch --config_file launch/cpu.yaml train.py ..."
            )
        found = sorted(set(self.ranks.gather_objects(self.precision.label)))
        if len(found) > 1:
            raise UserError(f"the ranks resolve train.precision to {' and '.join(found)}; set it: --train.precision no")


def check_wrapper(wrapper: nn.Module, kind: str, wanted: str) -> nn.Module:
    """Return the engine's own wrapper, which ``wrapper`` is or, if it is compiled, has inside.

    Raises:
        UserError: it is not of the class named ``wanted``, which ``kind`` uses.
    """
    bare: nn.Module = getattr(wrapper, "_orig_mod", wrapper)  # torch.compile keeps it there
    found = type(bare).__name__
    if found != wanted:
        raise UserError(
            f"{kind} was asked for and the model's wrapper is {found}, not {wanted}; "
            "start with one of the files in launch/"
        )
    return bare
