"""The learning-rate range test: the rates to try, and the rates that the losses suggest.

Smith: *Cyclical Learning Rates for Training Neural Networks*, arXiv:1506.01186, section 3.3, with the rate rising
exponentially. The smoothed curve yields two suggestions: fastai's *valley*, the middle of the longest stretch of
falling losses (Howard and Gugger, *fastai: A Layered API for Deep Learning*, arXiv:2002.04688), and the rate at which
the loss falls fastest over the logarithm of the rate. Both ignore losses above that of guessing: a network whose first
logits are too large falls to it at any rate without learning anything. They also ignore all that follows the first
divergence, from which batch normalisation may let a network recover at a rate that it cannot train with. The valley
leaves out the first tenth of the fall, whose length depends on the lowest rate of the test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.config.changes import NOT_RANGE_TESTED, contradiction
from cifar_dist.errors import UserError
from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.reading import read_json
from cifar_dist.formatting import percent

_WIDTH = 0.1  # standard deviation of the smoothing window, in decades of the rate
_DIVERGED = 3.0  # times the best smoothed loss
_LOST = 0.5  # of the fall from guessing to the best loss: a loss that climbs back by more has diverged
_FALL = 0.05  # of the loss of guessing: a smaller fall is not distinguished from noise
_BEGUN = 0.1  # of the fall: where the valley begins
_FEWEST = 10


@dataclass(frozen=True)
class Curve:
    """The losses of a range test.

    Attributes:
        lrs: learning rate of each step, rising.
        losses: mean loss of the global batch before that step, in nats; all finite.
        guessing: loss of one probability for all classes, ln(classes), whatever the targets are.
    """

    lrs: list[float]
    losses: list[float]
    guessing: float

    def smoothed(self) -> NDArray[np.float64]:
        """Smooth the losses with a Gaussian window over the logarithm of the rate, float64 [steps].

        The window is symmetric, because a running mean would lag and make every suggestion too high.
        """
        place = np.log10(self.lrs)
        window = np.exp(-0.5 * ((place[:, None] - place) / _WIDTH) ** 2)
        mean: NDArray[np.float64] = (window @ self.losses) / window.sum(axis=1)
        return mean

    def diverged(self) -> bool:
        """Whether the loss has diverged, so that more steps would add no information."""
        values = self.smoothed()
        if len(values) <= _FEWEST:
            return False
        return self._divergence() < len(values) or bool(values[-1] > _DIVERGED * values.min())

    def still_falls(self) -> bool:
        """Whether the loss is lowest at the end, so that higher rates may train too."""
        return int(self.smoothed()[: self._divergence()].argmin()) == len(self.lrs) - 1

    def _divergence(self) -> int:
        """Return the first step at which the loss has diverged; the number of steps if it has not."""
        values = np.minimum(self.smoothed(), self.guessing)
        lowest = np.minimum.accumulate(values)
        fall = self.guessing - lowest
        lost = (values - lowest > _LOST * fall) & (fall > _FALL * self.guessing)
        return int(lost.argmax()) if lost.any() else len(values)

    def steepest(self) -> float:
        """Return the rate at which the smoothed loss falls fastest, below that of guessing."""
        learnt = self._learnt()
        fall = np.gradient(self.smoothed(), np.log(self.lrs))
        return self.lrs[int(np.where(learnt, fall, np.inf).argmin())]

    def valley(self) -> float:
        """Return the middle of the longest falling subsequence of the smoothed loss, below that of guessing."""
        values = self.smoothed()[: int(self._learnt().nonzero()[0][-1]) + 1]
        values = np.minimum(values, self.guessing - _BEGUN * (self.guessing - values.min()))
        longest = np.ones(len(values), dtype=int)
        for step in range(1, len(values)):
            higher = values[:step] > values[step]
            longest[step] += longest[:step][higher].max(initial=0)
        end = int(longest.argmax())
        return self.lrs[end - int(longest[end]) // 2]

    def _learnt(self) -> NDArray[np.bool_]:
        """Mark the steps up to the lowest loss before a divergence that are better than guessing, bool [steps].

        Raises:
            UserError: there are none, so no rate can be suggested.
        """
        values = self.smoothed()
        learnt = values < self.guessing
        lowest = int(values[: self._divergence()].argmin()) if len(values) else 0
        learnt[lowest + 1 :] = False
        too_little = len(values) < _FEWEST or values[lowest] > (1 - _FALL) * self.guessing
        if too_little or learnt.sum() < 2:
            raise UserError(
                f"in {len(values)} steps the loss did not fall below that of guessing, {self.guessing:.2f}, by "
                f"{percent(_FALL, 0)}; use more --steps, or another --low and --high"
            )
        return learnt

    def save(self, path: Path, settings: Mapping[str, object], fingerprint: str) -> None:
        """Write a curve, with the settings and the data that it was made with."""
        write_atomic(path, json.dumps({**asdict(self), "settings": settings, "fingerprint": fingerprint}))

    @staticmethod
    def load(path: Path) -> Curve | None:
        """Read a curve; None if the file does not exist or is damaged."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            lrs, losses = ([float(value) for value in found[key]] for key in ("lrs", "losses"))
            curve = Curve(lrs, losses, float(found["guessing"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        is_valid = len(curve.lrs) == len(curve.losses) and min(curve.lrs, default=0) > 0
        return curve if is_valid and all(map(math.isfinite, (*curve.lrs, *curve.losses, curve.guessing))) else None


def difference(path: Path, settings: Mapping[str, object], fingerprint: str) -> str:
    """Say with what a curve was made that a run does not have.

    Args:
        path: the curve's.
        settings: the run's, by key.
        fingerprint: of the run's data; empty if unknown.

    Returns:
        The end of "made with"; empty for nothing, or if the file does not say it.
    """
    found = read_json(path)
    made_with, data = found.get("settings"), found.get("fingerprint")
    if isinstance(made_with, dict):
        own = json.loads(json.dumps(settings))  # tuples become lists
        if other := contradiction(made_with, own, NOT_RANGE_TESTED, "this run"):
            return other[1]
    if isinstance(data, str) and fingerprint and data != fingerprint:
        return f"other data ({data}, and this run's is {fingerprint})"
    return ""


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Average the losses of tests at the same rates, up to where the first of them ended."""
    steps = min(len(curve.lrs) for curve in curves)
    losses = np.mean([curve.losses[:steps] for curve in curves], axis=0)
    return Curve(curves[0].lrs[:steps], losses.tolist(), curves[0].guessing)


def rates(low: float, high: float, steps: int) -> Sequence[float]:
    """Return ``steps`` learning rates from ``low`` to ``high``, in geometric progression."""
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
