"""Settings of weight averaging: one dataclass for each average, which computes the weight of an update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from cifar_dist.config.choice import Choice
from cifar_dist.config.epochs import steps_in
from cifar_dist.config.section import require, require_at_least


@dataclass(frozen=True)
class AverageConfig(Choice):
    """The average of the weights that is evaluated and kept instead of the last weights."""

    key: ClassVar[str] = "average"
    variants: ClassVar[dict[str, type[AverageConfig]]] = {}

    name: str = "none"
    """The average, or ``path/to/file.py:Attribute`` for one from outside the package."""


@dataclass(frozen=True)
class NoAverageConfig(AverageConfig):
    """The last weights are evaluated and kept."""

    name: str = "none"


@dataclass(frozen=True)
class RunningAverageConfig(AverageConfig):
    """A running average A of the weights W: A <- A + weight * (W - A).

    Attributes:
        gives_back: whether the model receives the average after each update.
    """

    defined_by_variants: ClassVar[tuple[str, ...]] = ("weight",)
    gives_back: ClassVar[bool] = False

    start: float = 0.0
    """Epochs before the average begins, as a copy of the weights."""
    every: int = 1
    """Steps between two updates."""
    recalibrate: int = 0
    """Training images from which to recompute batch statistics for the average; 0 averages the statistics too."""

    def __post_init__(self) -> None:
        require_at_least(self, start=0, every=1, recalibrate=0)

    def first_step(self, steps_per_epoch: int) -> int:
        """Return the optimizer steps after which the average begins."""
        return math.ceil(steps_in(self.start, steps_per_epoch))

    def updates(self, steps: int, steps_per_epoch: int) -> range:
        """Return the optimizer steps, of the first ``steps``, after each of which the average is updated."""
        return range(self.first_step(steps_per_epoch) + self.every, steps + 1, self.every)

    def keeps_weights(self, steps: int, *, steps_per_epoch: int, before: int, after: int) -> bool:
        """Whether the updates in the first ``steps`` of runs of ``before`` and ``after`` epochs have equal weights.

        Only those that both runs have count.
        """
        start = self.first_step(steps_per_epoch)
        steps = min(steps, steps_per_epoch * before, steps_per_epoch * after)
        return all(
            self.weight(step, start=start, total=steps_per_epoch * before)
            == self.weight(step, start=start, total=steps_per_epoch * after)
            for step in self.updates(steps, steps_per_epoch)
        )

    def first_share(self, steps: int, *, steps_per_epoch: int, total: int) -> float:
        """Return how much of the average after ``steps`` is the copy with which it began, in [0, 1]."""
        start = self.first_step(steps_per_epoch)
        updates = self.updates(steps, steps_per_epoch)
        return math.prod(1 - self.weight(step, start=start, total=total) for step in updates)

    def weight(self, step: int, *, start: int, total: int) -> float:
        """Return the weight of the update after ``step`` optimizer steps, in [0, 1].

        Args:
            step: a multiple of ``every`` steps after ``start``.
            start: steps after which the average began.
            total: steps of the run.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class EMAConfig(RunningAverageConfig):
    """Exponential moving average. Polyak, Juditsky: *Acceleration of Stochastic Approximation by Averaging*, 1992."""

    name: str = "ema"
    decay: float = 0.999
    """Fraction of the average that an update keeps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_decay(self.decay)

    def weight(self, step: int, *, start: int, total: int) -> float:
        return 1 - self.decay


@dataclass(frozen=True)
class SWAConfig(RunningAverageConfig):
    """The mean of the weights. Izmailov et al.: *Averaging Weights Leads to Wider Optima*, arXiv:1803.05407.

    Averaged batch statistics do not match the averaged weights: set ``recalibrate``.
    """

    name: str = "swa"

    def weight(self, step: int, *, start: int, total: int) -> float:
        return 1 / ((step - start) // self.every + 1)


@dataclass(frozen=True)
class LookaheadConfig(RunningAverageConfig):
    """Slow weights that follow the optimizer's fast weights every few steps and then replace them.

    Zhang, Lucas, Hinton, Ba: *Lookahead Optimizer: k steps forward, 1 step back*, arXiv:1907.08610; k is ``every`` and
    alpha is ``1 - decay``. With ``ramp`` the decay grows over the run, as in airbench94 (Keller Jordan,
    arXiv:2404.00498: decay 0.95 ** 5, every 5, ramp 3). With the decay of an EMA, nothing is learnt.

    Batch statistics are averaged and replaced too, so they lag behind the weights, above all in the first epochs and
    where ``model.unfreeze`` adds stages of random weights: set ``recalibrate``.
    """

    gives_back: ClassVar[bool] = True

    name: str = "lookahead"
    every: int = 5
    """Steps between two updates."""
    decay: float = 0.5
    """Fraction of the slow weights that an update keeps; 1 minus the paper's alpha."""
    ramp: float = 0.0
    """Exponent with which the decay grows over the run: decay * (step / steps) ** ramp; 0 keeps it constant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_decay(self.decay)
        require_at_least(self, ramp=0)

    def weight(self, step: int, *, start: int, total: int) -> float:
        return 1 - self.decay * math.pow(step / total, self.ramp)


AverageConfig.variants.update(none=NoAverageConfig, ema=EMAConfig, swa=SWAConfig, lookahead=LookaheadConfig)
AverageConfig.plug_in_base = RunningAverageConfig


def _check_decay(decay: float) -> None:
    require(0 <= decay < 1, f"decay {decay} must be in [0, 1)")
