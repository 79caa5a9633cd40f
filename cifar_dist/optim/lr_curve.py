"""The learning-rate range test: which rates to try, and which to take from the losses that they gave.

Smith: *Cyclical Learning Rates for Training Neural Networks*, arXiv:1506.01186, section 3.3, with the rate rising
exponentially. Two suggestions, both on the smoothed curve: fastai's *valley*, the middle of the longest stretch of
falling losses (Howard and Gugger, *fastai: A Layered API for Deep Learning*, arXiv:2002.04688), and where the loss
falls steepest over the logarithm of the rate. Neither looks above the loss of guessing: a network whose first logits
are too large falls to it at any rate, and learns nothing there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.errors import UserError
from cifar_dist.files import write_atomic

_WIDTH = 0.1  # standard deviation of the smoothing window, in decades of the rate
_DIVERGED = 3.0  # times the best smoothed loss
_FEWEST = 10


@dataclass(frozen=True)
class Curve:
    """What a range test found.

    Attributes:
        lrs: learning rate of each step, rising.
        losses: mean loss of the global batch before that step, in nats; all finite.
        guessing: loss of one probability for all classes, ln(classes), whatever the targets are.
    """

    lrs: list[float]
    losses: list[float]
    guessing: float

    def smoothed(self) -> NDArray[np.float64]:
        """The losses' mean under a Gaussian window over the logarithm of the rate, float64 [steps].

        The window looks both ways: a running mean would lag, and every suggestion would come out too high.
        """
        place = np.log10(self.lrs)
        window = np.exp(-0.5 * ((place[:, None] - place) / _WIDTH) ** 2)
        mean: NDArray[np.float64] = (window @ self.losses) / window.sum(axis=1)
        return mean

    def diverged(self) -> bool:
        """Whether going on would tell nothing more."""
        values = self.smoothed()
        return len(values) > _FEWEST and bool(values[-1] > _DIVERGED * values.min())

    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest, below that of guessing."""
        learnt = self._learnt()
        fall = np.gradient(self.smoothed(), np.log(self.lrs))
        return self.lrs[int(np.where(learnt, fall, np.inf).argmin())]

    def valley(self) -> float:
        """The middle of the longest falling subsequence of the smoothed loss, below that of guessing."""
        self._learnt()
        values = np.minimum(self.smoothed(), self.guessing)
        longest = np.ones(len(values), dtype=int)
        for step in range(1, len(values)):
            higher = values[:step] > values[step]
            longest[step] += longest[:step][higher].max(initial=0)
        end = int(longest.argmax())
        return self.lrs[end - int(longest[end]) // 2]

    def _learnt(self) -> NDArray[np.bool_]:
        """Which steps up to the lowest loss are better than guessing, bool [steps].

        Raises:
            UserError: none, so that no rate can be told from another.
        """
        values = self.smoothed() if self.lrs else np.empty(0)
        learnt = values < self.guessing
        learnt[int(values.argmin()) + 1 if len(values) else 0 :] = False
        if len(values) < _FEWEST or learnt.sum() < 2:
            raise UserError(
                f"in {len(values)} steps the loss did not come below that of guessing, {self.guessing:.2f}; "
                "take more --steps, or another --low and --high"
            )
        return learnt

    def save(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Curve | None:
        """The curve in a file; None where there is none, or it is damaged."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            lrs, losses = ([float(value) for value in found[key]] for key in ("lrs", "losses"))
            curve = Curve(lrs, losses, float(found["guessing"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        whole = len(curve.lrs) == len(curve.losses) and min(curve.lrs, default=0) > 0
        return curve if whole and all(map(math.isfinite, (*curve.lrs, *curve.losses, curve.guessing))) else None


def rates(low: float, high: float, steps: int) -> Sequence[float]:
    """``steps`` learning rates from ``low`` to ``high``, each the same factor above the one before."""
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
