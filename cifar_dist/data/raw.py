"""A dataset as its source holds it, decoded and in memory, before it is packed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class RawSplit:
    """The samples of one split, in the source's order.

    Attributes:
        images: uint8 [samples, height, width, 3].
        labels: int64 [samples], class index, or -1 where the source has no labels.
        ids: int64 [samples], what names a sample in its source; unique within the split.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert self.images.dtype == np.uint8
        assert self.images.ndim == 4
        assert self.images.shape[3] == 3
        assert len(self.images) == len(self.labels) == len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> RawSplit:
        """These rows, in this order."""
        return RawSplit(self.images[rows], self.labels[rows], self.ids[rows])

    def resized(self, size: int) -> RawSplit:
        """Every image as ``size`` x ``size``."""
        if self.images.shape[1:3] == (size, size):
            return self
        images = np.stack([np.asarray(resize(Image.fromarray(image), size)) for image in self.images])
        return RawSplit(images, self.labels, self.ids)


@dataclass(frozen=True)
class RawDataset:
    """What a source holds.

    Attributes:
        kind: the source's format, for example ``image-folder``.
        classes: class names, in label order; empty where nothing is labelled.
        splits: at least one of train, val and test, none of them empty, all of one image shape.
    """

    kind: str
    classes: tuple[str, ...]
    splits: dict[str, RawSplit]


def numbered(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> RawSplit:
    """A split whose samples are named by their position."""
    return RawSplit(images, labels, np.arange(len(images), dtype=np.int64))


def resize(image: Image.Image, size: int) -> Image.Image:
    """``size`` x ``size``: the central square, bicubic. Stretching would teach shapes that nothing has."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
