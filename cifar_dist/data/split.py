"""Part of a split held out of it, class by class, by hash."""

from __future__ import annotations

import numpy as np
import torch

from cifar_dist.data.randomness import bits
from cifar_dist.data.raw import RawSplit


def hold_out(split: RawSplit, fraction: float, seed: int, purpose: str) -> tuple[RawSplit, RawSplit]:
    """Cut a split in two: what is kept, and ``round(fraction * n)`` of the n samples of each class.

    A sample is chosen by the hash of (seed, purpose, its id) within its class, so the choice does not depend on
    the order of the samples. Both parts keep that order; either may be empty.

    Args:
        split: samples with labels.
        fraction: of each class, in [0, 1).
        seed: another seed chooses others.
        purpose: what they are for; different purposes choose independently.
    """
    by_hash = torch.argsort(bits(seed, 0, torch.from_numpy(split.ids), purpose), stable=True).numpy()
    held = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        of_class = by_hash[split.labels[by_hash] == label]
        held[of_class[: round(fraction * len(of_class))]] = True
    return split.take(np.flatnonzero(~held)), split.take(np.flatnonzero(held))
