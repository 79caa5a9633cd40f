"""Settings of the schedules: one dataclass for each, which computes the learning rate as a function of the step.

A warm-up shrinks with the run: one that is longer than ``longest_warmup``, a share of the run, is shortened to that
share, so that ``--train.epochs 2`` of a recipe with a warm-up of two epochs still reaches its peak early and falls from
it. The share is torch's ``OneCycleLR.pct_start``, 0.3. A run that is long enough keeps its warm-up to the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from cifar_dist.config.choice import Choice
from cifar_dist.config.epochs import steps_in
from cifar_dist.config.section import require, require_at_least


@dataclass(frozen=True)
class AfterWarmup:
    """Position of a step in a run, after the warm-up.

    Attributes:
        step: optimizer steps since the beginning of the run.
        warmup: steps of the warm-up, which may end between two steps.
        since: steps since the end of the warm-up.
        left: steps from the end of the warm-up to the end of the run.
        steps_per_epoch: optimizer steps in one epoch.
    """

    step: int
    warmup: float
    since: float
    left: float
    steps_per_epoch: int


@dataclass(frozen=True)
class ScheduleConfig(Choice):
    """The learning rate as a function of the step: a warm-up, then the schedule that ``name`` picks."""

    key: ClassVar[str] = "schedule"
    variants: ClassVar[dict[str, type[ScheduleConfig]]] = {}
    needs: ClassVar[dict[str, str]] = {"start": "warmup"}
    defined_by_variants: ClassVar[tuple[str, ...]] = ("falling", "fraction")
    defines_one: ClassVar[bool] = True
    longest_warmup: ClassVar[float] = 0.3
    """The longest warm-up, as a share of the run."""

    name: str = "onecycle"
    """The schedule, or ``path/to/file.py:Attribute`` for one from outside the package."""
    warmup: float = 0.0
    """Epochs from ``start`` to the peak; shortened to 30 % of a run that is too short for it (``triangular``: 50 %, and
    not at all with a ``cycle``)."""
    start: float = 0.0
    """LR of the first step, as a fraction of ``optim.lr``."""

    def __post_init__(self) -> None:
        require_at_least(self, warmup=0)
        _check_fraction("start", self.start)

    def warmup_of(self, epochs: int) -> float:
        """Return the epochs that the warm-up takes in a run of ``epochs``."""
        longest = self.longest_warmup * epochs
        return longest if _exceeds(self.warmup, longest) else self.warmup

    def cut_short(self, epochs: int) -> list[str]:
        """Say what a run of ``epochs`` has no room for, in one line each."""
        warmup = self.warmup_of(epochs)
        if warmup == self.warmup:
            return []
        return [
            f"warm-up: {warmup:g} epochs instead of {self.warmup:g}, "
            f"{100 * self.longest_warmup:.0f} % of train.epochs {epochs}"
        ]

    def keeps_rates(self, steps: int, *, steps_per_epoch: int, before: int, after: int) -> bool:
        """Whether the first ``steps`` learning rates of runs of ``before`` and ``after`` epochs are equal.

        A run that has done ``steps`` can then be extended: it ends as if it had had the new length from the start.
        """
        return all(
            self.fraction(step, steps_per_epoch=steps_per_epoch, epochs=before)
            == self.fraction(step, steps_per_epoch=steps_per_epoch, epochs=after)
            for step in range(steps)
        )

    def fraction(self, step: int, *, steps_per_epoch: int, epochs: int) -> float:
        """Return the LR of a step as a fraction of the peak, in [0, 1].

        Args:
            step: from 0 to the number of steps in the run.
            steps_per_epoch: optimizer steps in one epoch.
            epochs: length of the run.
        """
        warmup = steps_in(self.warmup_of(epochs), steps_per_epoch)
        if step < warmup:
            return self.rising(step / warmup)
        left = steps_per_epoch * epochs - warmup
        return self.falling(AfterWarmup(step, warmup, step - warmup, left, steps_per_epoch))

    def rising(self, progress: float) -> float:
        """Return the fraction of the peak at ``progress`` in [0, 1) of the warm-up."""
        return between(self.start, 1.0, progress)

    def falling(self, at: AfterWarmup) -> float:
        """Return the fraction of the peak after the warm-up; 1 unless a schedule overrides it."""
        return 1.0


@dataclass(frozen=True)
class ConstantConfig(ScheduleConfig):
    """Stays at the peak."""

    name: str = "constant"


@dataclass(frozen=True)
class FallingConfig(ScheduleConfig):
    """A schedule that ends at ``final``."""

    final: float = 0.0
    """LR at the end of the run (of each cycle, for restarts), as a fraction of ``optim.lr``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fraction("final", self.final)


@dataclass(frozen=True)
class OnecycleConfig(FallingConfig):
    """Rises to the peak and falls to ``final``. Smith, Topin: *Super-Convergence*, arXiv:1708.07120."""

    needs: ClassVar[dict[str, str]] = {"start": "warmup", "three_phase": "warmup"}

    name: str = "onecycle"
    shape: Literal["linear", "cosine"] = "linear"
    """Shape of the rise and the fall."""
    three_phase: bool = False
    """Fall to ``start`` in as many epochs as the warm-up takes, then to ``final``."""

    def rising(self, progress: float) -> float:
        return between(self.start, 1.0, progress, cosine=self.shape == "cosine")

    def falling(self, at: AfterWarmup) -> float:
        cosine = self.shape == "cosine"
        if not (at.warmup and self.three_phase):
            return between(1.0, self.final, share(at.since, at.left), cosine=cosine)
        if at.since < at.warmup:
            return between(1.0, self.start, at.since / at.warmup, cosine=cosine)
        return between(self.start, self.final, share(at.since - at.warmup, at.left - at.warmup), cosine=cosine)


@dataclass(frozen=True)
class CosineConfig(FallingConfig):
    """Falls to ``final`` on half a cosine. Loshchilov, Hutter: *SGDR*, arXiv:1608.03983."""

    name: str = "cosine"

    def falling(self, at: AfterWarmup) -> float:
        return between(1.0, self.final, share(at.since, at.left), cosine=True)


@dataclass(frozen=True)
class StepConfig(ScheduleConfig):
    """Multiplies the LR by ``gamma`` at each milestone."""

    needs: ClassVar[dict[str, str]] = {"start": "warmup", "gamma": "milestones"}

    name: str = "step"
    milestones: tuple[float, ...] = ()
    """Epochs at which the LR is multiplied."""
    gamma: float = 0.1
    """Factor at each milestone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        milestones = list(self.milestones)
        require(all(epoch > 0 for epoch in milestones), f"milestones {milestones} must be above 0; they are epochs")
        require(milestones == sorted(set(milestones)), f"milestones {milestones} must increase")
        require(0 < self.gamma <= 1, f"gamma {self.gamma} must be above 0 and at most 1")

    def cut_short(self, epochs: int) -> list[str]:
        if not self.milestones:
            return [*super().cut_short(epochs), "schedule.milestones: none, so that the learning rate never falls"]
        beyond = ", ".join(f"{milestone:g}" for milestone in self.milestones if milestone >= epochs)
        late = (
            [f"schedule.milestones: no effect of {beyond}, the run ends after train.epochs {epochs}"] if beyond else []
        )
        return super().cut_short(epochs) + late

    def falling(self, at: AfterWarmup) -> float:
        passed: int = sum(at.step >= steps_in(milestone, at.steps_per_epoch) for milestone in self.milestones)
        return math.pow(self.gamma, passed)


@dataclass(frozen=True)
class LinearConfig(FallingConfig):
    """Falls to ``final`` linearly."""

    name: str = "linear"

    def falling(self, at: AfterWarmup) -> float:
        return between(self.final, 1.0, 1 - share(at.since, at.left))


@dataclass(frozen=True)
class PolynomialConfig(FallingConfig):
    """Falls to ``final`` as a power of the remaining fraction of the run."""

    name: str = "polynomial"
    power: float = 1.0
    """Exponent of the remaining fraction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.power > 0, f"power {self.power} must be positive")

    def falling(self, at: AfterWarmup) -> float:
        return between(self.final, 1.0, math.pow(1 - share(at.since, at.left), self.power))


@dataclass(frozen=True)
class RestartsConfig(FallingConfig):
    """A cosine that restarts in each cycle. Loshchilov, Hutter: *SGDR*, arXiv:1608.03983."""

    needs: ClassVar[dict[str, str]] = {"start": "warmup", "growth": "cycle"}

    name: str = "restarts"
    cycle: float = 0.0
    """Epochs in the first cycle; 0 for one cycle over the entire run."""
    growth: float = 1.0
    """Factor from the length of one cycle to the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, cycle=0)
        require(1 <= self.growth <= 10, f"growth {self.growth} must be between 1 and 10")

    def cut_short(self, epochs: int) -> list[str]:
        return super().cut_short(epochs) + _cut_cycle(self.cycle, epochs - self.warmup_of(epochs), epochs)

    def falling(self, at: AfterWarmup) -> float:
        length = steps_in(self.cycle, at.steps_per_epoch) or at.left
        return between(1.0, self.final, self._progress(at.since, length), cosine=True)

    def _progress(self, steps: float, length: float) -> float:
        """Return the progress in [0, 1) of the cycle that ``steps`` falls in."""
        if self.growth == 1.0:
            return share(steps % length, length)
        while steps >= length:
            steps, length = steps - length, length * self.growth
        return share(steps, length)


@dataclass(frozen=True)
class TriangularConfig(ScheduleConfig):
    """Rises for ``warmup`` epochs and falls back to ``start``, in each cycle.

    Smith: *Cyclical Learning Rates*, arXiv:1506.01186.
    """

    needs: ClassVar[dict[str, str]] = {}
    longest_warmup: ClassVar[float] = 0.5

    name: str = "triangular"
    cycle: float = 0.0
    """Epochs in a cycle; 0 for one cycle over the entire run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, cycle=0)
        require(
            not self.cycle or self.warmup <= self.cycle,
            f"warmup {self.warmup}, the rise of a triangle, is longer than its cycle of {self.cycle} epochs",
        )

    def cut_short(self, epochs: int) -> list[str]:
        return super().cut_short(epochs) + _cut_cycle(self.cycle, epochs, epochs)

    def warmup_of(self, epochs: int) -> float:
        return self.warmup if self.cycle else super().warmup_of(epochs)

    def fraction(self, step: int, *, steps_per_epoch: int, epochs: int) -> float:
        rise = steps_in(self.warmup_of(epochs), steps_per_epoch)
        length = steps_in(self.cycle, steps_per_epoch) or steps_per_epoch * epochs
        place = step % length
        if place < rise:
            return self.rising(place / rise)
        return between(1.0, self.start, share(place - rise, length - rise))


@dataclass(frozen=True)
class WSDConfig(FallingConfig):
    """Warm-up, stable, decay: constant, then falls to ``final`` at the end. Hu et al.: *MiniCPM*, arXiv:2404.06395."""

    needs: ClassVar[dict[str, str]] = {"start": "warmup", "final": "decay", "shape": "decay"}

    name: str = "wsd"
    shape: Literal["linear", "cosine"] = "linear"
    """Shape of the fall."""
    decay: float = 0.0
    """Epochs of the fall, at the end of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, decay=0)

    def cut_short(self, epochs: int) -> list[str]:
        left = epochs - self.warmup_of(epochs)
        if not self.decay:
            return [*super().cut_short(epochs), "schedule.decay: 0 epochs, so that the learning rate never falls"]
        late = [f"schedule.decay: {left:g} epochs instead of {self.decay:g}, those that train.epochs {epochs} leaves"]
        return super().cut_short(epochs) + (late if _exceeds(self.decay, left) else [])

    def falling(self, at: AfterWarmup) -> float:
        decay = min(at.left, steps_in(self.decay, at.steps_per_epoch))
        return between(1.0, self.final, share(at.since - (at.left - decay), decay), cosine=self.shape == "cosine")


ScheduleConfig.variants.update(
    constant=ConstantConfig,
    onecycle=OnecycleConfig,
    cosine=CosineConfig,
    step=StepConfig,
    linear=LinearConfig,
    polynomial=PolynomialConfig,
    restarts=RestartsConfig,
    triangular=TriangularConfig,
    wsd=WSDConfig,
)


def share(steps: float, length: float) -> float:
    """Return the progress in [0, 1] of a phase of ``length`` steps; 0 if it has no length."""
    return min(1.0, max(0.0, steps) / length) if length > 0 else 0.0


def between(first: float, last: float, progress: float, *, cosine: bool = False) -> float:
    """Interpolate from ``first`` at progress 0 to ``last`` at 1, linearly or on half a cosine; never outside."""
    if cosine:
        progress = (1 - math.cos(math.pi * progress)) / 2
    # This form of interpolation meets both ends exactly; rounding may still pass one by an ulp.
    value = first * (1 - progress) + last * progress
    return min(max(value, min(first, last)), max(first, last))


def _exceeds(epochs: float, limit: float) -> bool:
    """Whether ``epochs`` are more than ``limit``, not only by a rounding error: 0.3 * 3 is less than 0.9."""
    return epochs > limit and not math.isclose(epochs, limit)


def _cut_cycle(cycle: float, left: float, epochs: int) -> list[str]:
    if not _exceeds(cycle, left):
        return []
    return [f"schedule.cycle: {left:g} epochs of {cycle:g}, those that train.epochs {epochs} leaves"]


def _check_fraction(name: str, value: float) -> None:
    require(0 <= value <= 1, f"{name} {value} must be a fraction of optim.lr, in [0, 1]")
