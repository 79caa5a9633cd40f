"""How well the confidence of predictions matches their accuracy (Guo et al., arXiv:1706.04599)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BINS = 10  # of equal width


@dataclass(frozen=True)
class Calibration:
    """Predictions in bins of confidence, without the empty ones; nan if a probability is.

    Attributes:
        samples: int64 [bins].
        confidence, accuracy: float64 [bins], the mean confidence of each bin, and its fraction of correct predictions.
    """

    samples: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of confidence and accuracy over all samples, a fraction."""
        return float((self.samples / self.samples.sum() * np.abs(self.accuracy - self.confidence)).sum())


def calibration(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Calibration:
    """Compare the confidence of predictions with their accuracy.

    Args:
        probabilities: float32 [N, classes], N at least 1.
        labels: int64 [N].
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.clip((np.nan_to_num(confidence) * _BINS).astype(int), 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    sums = (np.bincount(bins, weights=weights, minlength=_BINS) for weights in (confidence, correct))
    filled = counts > 0
    return Calibration(counts[filled], *(total[filled] / counts[filled] for total in sums))
