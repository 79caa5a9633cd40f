"""DeepSpeed's ZeRO: processes share optimizer state (stage 1), gradients too (stage 2), and weights too (stage 3).

Rajbhandari et al.: *ZeRO: Memory Optimizations Toward Training Trillion Parameter Models*, 2020, arXiv:1910.02054.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import ClassVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from cifar_dist.config import Config
from cifar_dist.distributed.engine import SHARDED, Engine, Limit, check_wrapper
from cifar_dist.distributed.host_copies import Deal
from cifar_dist.distributed.launcher_settings import read_deepspeed_file
from cifar_dist.distributed.optimizer_state import by_parameter, collect_zero, require_savable_zero, restore_zero
from cifar_dist.distributed.same_settings import check_same_engine
from cifar_dist.distributed.wrapped_model import WrappedModel
from cifar_dist.errors import UserError
from cifar_dist.launch.launched import knows_meeting_point

_SHARDED_FROM = 1000  # weights of a tensor


class DeepSpeedZero(Engine):
    """Stage 1 or 2, as the launcher's config says: every process holds all weights."""

    limits: ClassVar[tuple[Limit, ...]] = (
        *SHARDED,
        Limit(
            "average.name",
            lambda value: value == "lookahead",
            "needs an optimizer without a copy of the weights",
            refuses_section=lambda average: getattr(average, "gives_back", False),
        ),
    )

    shards = "optimizer state, and with ZeRO-2 gradients"
    stages: ClassVar[tuple[int, ...]] = (1, 2)
    description = "DeepSpeed ZeRO-1 or ZeRO-2"
    has_other_groups = True  # DeepSpeed's own

    def __init__(self, config: Config, *, cpu: bool) -> None:
        if cpu:
            _skip_inference_op_build()
        super().__init__(config, cpu=cpu)
        _limit_waits(config.run.collective_timeout)
        self.kind, self.description = self.ranks.run_on_all(self._examine)
        check_same_engine(self.description, self.ranks)

    def _examine(self) -> tuple[str, str]:
        """Return kind and description of what DeepSpeed was configured to do.

        On all ranks before one leaves, or those that are still joining would fail because of it.

        Raises:
            UserError: it is not supported.
        """
        plugin = self.accelerator.state.deepspeed_plugin
        if plugin is None:
            raise UserError("DeepSpeed was asked for and is not in use; start with launch/zero2.yaml")
        stage = plugin.zero_stage
        if stage not in self.stages:
            raise UserError(
                f"DeepSpeed ZeRO-{stage} was asked for in a way that is not supported; use launch/zero1.yaml, "
                "launch/zero2.yaml or launch/zero3.yaml"
            )
        description = f"DeepSpeed ZeRO-{stage}"
        zero = plugin.deepspeed_config["zero_optimization"]
        offloaded = {part: (zero.get(f"offload_{part}") or {}).get("device") for part in ("optimizer", "param")}
        if offloaded["optimizer"] == "cpu":
            self.updates_on_cpu = True
            description += ", optimizer on the CPU"
        elif offloaded["optimizer"] not in (None, "none"):
            raise UserError(
                f"DeepSpeed cannot offload the optimizer to {offloaded['optimizer']} here; use "
                "launch/zero2-offload.yaml, which offloads it to the CPU"
            )
        if offloaded["param"] not in (None, "none"):
            raise UserError("DeepSpeed cannot offload weights here; drop offload_param_device, or set it to none")
        return f"zero{stage}", description

    def start_accelerator(self, cpu: bool) -> Accelerator:
        if not knows_meeting_point():  # one process, which no launcher started
            raise UserError("DeepSpeed was asked for and there is no process group; start with launch/zero2.yaml")
        read_deepspeed_file()  # Accelerate reads it as well, without a check
        # DeepSpeed chooses its device itself. With Accelerate's cpu flag it would silently be DDP.
        return self.create_accelerator(cpu=False, mixed_precision="no", backend="gloo" if cpu else None)

    def wrap(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> WrappedModel:
        # It flattens weights in their contiguous order; the images may stay channels-last.
        module.to(memory_format=torch.contiguous_format)
        self._configure(sum(weight.numel() for weight in module.parameters() if weight.requires_grad))
        wrapper, wrapped_optimizer = self.accelerator.prepare(module, optimizer)
        check_wrapper(wrapper, self.kind, "DeepSpeedEngine")
        model = _Zero3Model if self.stages == (3,) else _ZeroModel
        return self.build_model(model, module, wrapper, wrapped_optimizer)

    def _configure(self, trained: int) -> None:
        """Complete the launcher's settings; ``trained`` is the number of weights that have gradients."""
        settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
        train = self._config.train
        # It requires that its batch be the product of these; ours is padded where it does not divide.
        parts = self.ranks.world_size * train.accumulate
        settings["train_micro_batch_size_per_gpu"] = micro_batch = math.ceil(train.batch_size / parts)
        settings["train_batch_size"] = micro_batch * parts
        settings["gradient_accumulation_steps"] = train.accumulate
        settings["gradient_clipping"] = self._config.optim.clip_norm
        settings["zero_allow_untested_optimizer"] = True
        settings["zero_force_ds_cpu_optimizer"] = False  # offloaded, it stays the optimizer of the recipe
        settings["steps_per_print"] = 2**31
        # It reserves memory for one exchange: by default for 500 million gradients, of a network that has a few.
        settings["zero_optimization"].setdefault("reduce_bucket_size", max(1, trained))
        # Norms and biases stay on each process. DeepSpeed's 100,000 would leave a small network unsharded.
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = _SHARDED_FROM
        # Autocast rather than DeepSpeed's own bf16 mode: the same arithmetic as DDP, and BatchNorm works on a CPU.
        if self.precision.name == "bf16":
            # Without the list, the gradients of plain convolutions and linear layers would be sent and added in bf16.
            settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


class DeepSpeedZero3(DeepSpeedZero):
    """Stage 3: every process holds a shard of the weights, and gathers a layer's weights while it computes."""

    limits = (
        *DeepSpeedZero.limits,
        Limit("train.compile", lambda value: value != "no", "needs one process, DDP, or DeepSpeed ZeRO-1 or ZeRO-2"),
    )
    shards = "weights, gradients and optimizer state"
    stages = (3,)
    description = "DeepSpeed ZeRO-3"


class _ZeroModel(WrappedModel):
    """DeepSpeed clears gradients, clips them and steps its optimizer within the last backward pass of a step."""

    hides_missing_gradients = True

    def __call__(self, images: Tensor, *, compiled: bool = True) -> Tensor:
        with nullcontext() if compiled else self._uncompiled():
            return super().__call__(images, compiled=compiled)

    def infer(self, images: Tensor) -> Tensor:
        with self._uncompiled():
            return super().infer(images)

    def update(self) -> Tensor | None:
        self._keep_without_gradient()
        self._optimizer.step()
        if not self.wrapper.was_step_applied():  # type: ignore[operator]
            # A gradient was not finite, and DeepSpeed left the update out in silence, as it would all later ones. With
            # other engines the weights show it, and the run ends.
            self.weights.put({name: torch.full_like(held, math.nan) for name, held in self.weights.tensors().items()})
        norm = self.wrapper.get_global_grad_norm() if self._clip_norm else None  # type: ignore[operator]
        # With an offloaded optimizer the norm is on the host, where other measurements are not.
        return None if norm is None else torch.as_tensor(norm, device=self.ranks.device)

    def _clear_gradients(self) -> None:
        """DeepSpeed has done it."""

    @contextmanager
    def _uncompiled(self) -> Iterator[None]:
        """The network as it is, inside: DeepSpeed compiles it in place, and so for every size of a batch, also here."""
        if not self.wrapper.is_compiled:
            yield
            return
        with torch.compiler.set_stance("force_eager"):
            yield

    def optimizer_state(self, deal: Deal | None = None) -> dict[str, Tensor]:
        return collect_zero(self._optimizer.optimizer, self.trainable_parameters(), deal)

    def require_savable_state(self) -> None:
        require_savable_zero(self._optimizer.optimizer, self._built_groups)

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        parameters = self.trainable_parameters()
        restore_zero(self._optimizer.optimizer, parameters, by_parameter(state, parameters))


class _Zero3Model(_ZeroModel):
    """DeepSpeed fetches weights ahead."""

    is_sharded = True

    def infer(self, images: Tensor) -> Tensor:
        logits = super().infer(images)
        self._optimizer.optimizer.empty_partition_cache()  # of weights for a backward pass, which does not come
        return logits


def _limit_waits(seconds: int) -> None:
    """Give DeepSpeed a process group that waits as long as the job's own; it would create one with torch's default."""
    from deepspeed.utils import groups

    groups._WORLD_GROUP = dist.new_group(timeout=timedelta(seconds=seconds))


def _skip_inference_op_build() -> None:
    """Skip compiling DeepSpeed's shared-memory all-reduce, which only its inference calls.

    The first start would compile it, with a compiler and in minutes, and a build that is interrupted leaves a lock
    that every later start waits for.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}
