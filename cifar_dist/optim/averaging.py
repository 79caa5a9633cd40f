"""Running averages of the weights, and recomputed batch statistics for them.

Whether step n updates the average, and with which coefficient, is computed from n. The state is therefore only tensors
by name, without a counter, and a resumed run continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cifar_dist.config import AverageConfig, RunningAverageConfig
from cifar_dist.errors import UserError
from cifar_dist.optim.held_weights import HeldWeights


class WeightAverage:
    """A running average of a model's parameters and floating-point buffers: A <- A + c * (W - A).

    It begins as a copy of the model after ``config.start`` epochs and is updated every ``config.every`` steps from
    there. Each process keeps the average of the weights that it holds. With ``config.gives_back`` the optimizer must
    not keep its own copy of the weights, as DeepSpeed's does; its momentum does not change.

    Args:
        weights: the model's, as this process holds them.
        config: the coefficient c of each update.
        steps_per_epoch, epochs: length of the run.
    """

    def __init__(
        self, weights: HeldWeights, config: RunningAverageConfig, *, steps_per_epoch: int, epochs: int
    ) -> None:
        self._weights, self._config = weights, config
        self._total = steps_per_epoch * epochs
        self._start = config.first_step(steps_per_epoch)
        self._updates = config.updates(self._total, steps_per_epoch)
        self._average = self._copy() if self._start == 0 else {}

    @property
    def recalibrate(self) -> int:
        """Number of training images for :func:`recalibrate`; 0 for none."""
        return self._config.recalibrate

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average if it is due, and copy it into the model if the config says so.

        Call it once after each step. A range test may take more steps than the run: updates after its end have the
        weight of its last one.

        Args:
            step: optimizer steps done.

        Raises:
            UserError: a plug-in's weight is not in [0, 1].
        """
        is_due = bool(self._updates) and step >= self._start and (step - self._start) % self._config.every == 0
        if step == self._start:
            self._average = self._copy()
        elif is_due:
            assert self._average, f"the average begins after step {self._start} and was not loaded at step {step}"
            counted = min(step, self._updates[-1])
            coefficient = average_weight(self._config, counted, start=self._start, total=self._total)
            torch._foreach_lerp_(list(self._average.values()), list(self._weights.tensors().values()), coefficient)
        if is_due and self._config.gives_back:
            self._weights.put(self._average)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What this process holds of the average, by name; empty before it has begun."""
        return self._average

    @property
    def begun(self) -> bool:
        """Whether the average has begun."""
        return bool(self._average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside the context, and restore its own afterwards."""
        kept = self._copy()
        try:
            self._weights.put(self._average)
            yield
        finally:
            self._weights.put(kept)

    @torch.no_grad()
    def load(self, full: Mapping[str, Tensor], step: int) -> None:
        """Restore the average after ``step`` steps from its ``full`` tensors by name. Collective for shards.

        Raises:
            UserError: they belong to another model, or to other settings of the average.
        """
        wanted = self._weights.shapes() if step >= self._start else {}
        if wanted != {name: value.shape for name, value in full.items()}:
            raise UserError(
                f"the checkpoint of step {step} has {len(full) or 'no'} averaged weights and this run needs "
                f"{len(wanted) or 'none'}; resume with the settings it was started with, or use another --run.name"
            )
        self._average = self._weights.take(full) if wanted else {}

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._weights.tensors().items()}


def average_weight(config: RunningAverageConfig, step: int, *, start: int, total: int) -> float:
    """Return :meth:`RunningAverageConfig.weight` of the update after ``step``.

    Raises:
        UserError: a plug-in's is not in [0, 1].
    """
    found: object = config.weight(step, start=start, total=total)
    if not (isinstance(found, int | float) and 0 <= found <= 1):
        raise UserError(
            f"average.name {config.name}: the weight of step {step} is {found!r:.40}, not a number in [0, 1]"
        )
    return found


def build_average(
    config: AverageConfig, weights: HeldWeights, *, steps_per_epoch: int, epochs: int
) -> WeightAverage | None:
    """Build the average that the config asks for; None for none."""
    if not isinstance(config, RunningAverageConfig):
        return None
    return WeightAverage(weights, config, steps_per_epoch=steps_per_epoch, epochs=epochs)


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether a network has batch norms with running statistics, which :func:`recalibrate` sets."""
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return any(norm.running_mean is not None for norm in norms)


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor], forward: Callable[[Tensor], object] | None = None) -> None:
    """Set the running statistics of all batch norms in training mode to the mean of the batch statistics.

    Those in evaluation mode keep theirs: they belong to the weights of a frozen stage. Like
    torch.optim.swa_utils.update_bn, except that dropout is off, as it is when the statistics are used, and that a
    layer's momentum does not matter. Deterministic; equal on all processes that see the same batches.

    Args:
        model: the unwrapped model; its training mode does not change.
        batches: float [n, c, h, w], normalised as in training, n at least 2.
        forward: the forward pass of the model, if it is not simply called.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    modes = {module: module.training for module in model.modules()}
    before = [buffer.clone() for norm in norms for buffer in norm.buffers()]
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}

    def record(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].float()
        seen[norm].append(torch.var_mean(x, dim=[axis for axis in range(x.ndim) if axis != 1]))

    hooks = [norm.register_forward_pre_hook(record) for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()  # normalise with the batch's own statistics, so that later layers see inputs as after calibration
    try:
        for images in batches:
            (forward or model)(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
        for buffer, value in zip((b for norm in norms for b in norm.buffers()), before, strict=True):
            buffer.copy_(value)  # undo the updates that the forward passes made with the layers' momentum
    for norm in norms:
        if seen[norm] and norm.running_mean is not None and norm.running_var is not None:
            variances, means = zip(*seen[norm], strict=True)
            norm.running_mean.copy_(torch.stack(means).mean(dim=0))
            norm.running_var.copy_(torch.stack(variances).mean(dim=0))
