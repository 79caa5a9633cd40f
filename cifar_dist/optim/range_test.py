"""The learning-rate range test: which rates to try, and which to take from the losses that they gave.

Smith: *Cyclical Learning Rates for Training Neural Networks*, arXiv:1506.01186, section 3.3, with the rate rising
exponentially. Two suggestions, both on the smoothed curve: where the loss falls steepest over the logarithm of
the rate, and fastai's *valley*, the middle of the longest stretch of falling losses (Howard and Gugger, *fastai: A
Layered API for Deep Learning*, arXiv:2002.04688).
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
    """

    lrs: list[float]
    losses: list[float]

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
        """The rate at which the smoothed loss falls fastest."""
        self._require_fall()
        fall = np.gradient(self.smoothed(), np.log(self.lrs))
        return self.lrs[int(fall[: self._end()].argmin())]

    def valley(self) -> float:
        """The middle of the longest falling subsequence of the smoothed loss."""
        self._require_fall()
        values = self.smoothed()
        longest = np.ones(len(values), dtype=int)
        for step in range(1, len(values)):
            higher = values[:step] > values[step]
            longest[step] += longest[:step][higher].max(initial=0)
        end = int(longest.argmax())
        return self.lrs[end - int(longest[end]) // 2]

    def _end(self) -> int:
        """The steps up to the lowest loss."""
        return int(self.smoothed().argmin()) + 1

    def _require_fall(self) -> None:
        """Raises:
        UserError: the loss never fell, so that no rate can be told from another.
        """
        if len(self.lrs) < _FEWEST or self._end() == 1:
            raise UserError(
                f"the loss did not fall in {len(self.lrs)} steps from learning rate {self.lrs[0]:.3g} on; "
                "start lower with --low, or take more --steps"
            )

    def save(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Curve | None:
        """The curve in a file; None where there is none, or it is damaged."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            curve = Curve(*([float(value) for value in found[key]] for key in ("lrs", "losses")))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        whole = len(curve.lrs) == len(curve.losses) and min(curve.lrs, default=0) > 0
        return curve if whole and all(map(math.isfinite, (*curve.lrs, *curve.losses))) else None


def rates(low: float, high: float, steps: int) -> Sequence[float]:
    """``steps`` learning rates from ``low`` to ``high``, each the same factor above the one before."""
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
