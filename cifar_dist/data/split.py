"""Hold out part of a split, per class, by hash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cifar_dist.data.randomness import bits
from cifar_dist.data.raw import RawSplit
from cifar_dist.data.statistics import in_chunks


@dataclass(frozen=True)
class SplitPart:
    """Some samples of a split. Its pixels are not copied: the images of a split may fill most of the memory.

    Attributes:
        split: the split.
        rows: int64 [samples], positions in it.
    """

    split: RawSplit
    rows: NDArray[np.int64]

    @classmethod
    def all_of(cls, split: RawSplit) -> SplitPart:
        """Return all samples of a split."""
        return cls(split, np.arange(len(split)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [samples]."""
        return self.split.labels[self.rows]

    @property
    def ids(self) -> NDArray[np.int64]:
        """int64 [samples]."""
        return self.split.ids[self.rows]

    def take(self, rows: NDArray[np.int64]) -> SplitPart:
        """Return the given rows of this part, in that order."""
        return SplitPart(self.split, self.rows[rows])

    def images(self) -> Iterator[NDArray[np.uint8]]:
        """Copy the images in chunks, uint8 [n, height, width, 3]."""
        return (self.split.images[self.rows[chunk]] for chunk in in_chunks(len(self), self.split.images[0].nbytes))


def hold_out(split: SplitPart, fraction: float, seed: int, purpose: str) -> tuple[SplitPart, SplitPart]:
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
    labels = split.labels
    held = np.zeros(len(split), dtype=bool)
    for label in np.unique(labels):
        of_class = by_hash[labels[by_hash] == label]
        held[of_class[: min(round(fraction * len(of_class)), len(of_class) - 1)]] = True
    return split.take(np.flatnonzero(~held)), split.take(np.flatnonzero(held))
