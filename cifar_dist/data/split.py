"""Hold out part of a split, per class, by hash."""

from __future__ import annotations

import numpy as np
import torch

from cifar_dist.data.randomness import bits
from cifar_dist.data.raw import RawSplit


def hold_out(split: RawSplit, fraction: float, seed: int, purpose: str) -> tuple[RawSplit, RawSplit]:
    """Split a split into the samples kept and ``round(fraction * n)`` of the n samples of each class held out.

    At least one sample of each class is kept: nothing would learn the class otherwise. Within a class, samples are
    chosen by the hash of (seed, purpose, id), so the choice does not depend on their order. Both parts keep the
    original order; the second may be empty.

    Args:
        split: labelled samples.
        fraction: of each class, in [0, 1).
        seed: determines the choice.
        purpose: what the samples are held out for; choices for different purposes are independent.
    """
    by_hash = torch.argsort(bits(seed, 0, torch.from_numpy(split.ids), purpose), stable=True).numpy()
    held = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        of_class = by_hash[split.labels[by_hash] == label]
        held[of_class[: min(round(fraction * len(of_class)), len(of_class) - 1)]] = True
    return split.take(np.flatnonzero(~held)), split.take(np.flatnonzero(held))
