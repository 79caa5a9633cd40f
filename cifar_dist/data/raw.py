"""A dataset decoded into memory, before it is packed."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.arrays import require_int64, resize_images
from cifar_dist.data.image_files import MAX_SIDE
from cifar_dist.data.split_words import SPLITS
from cifar_dist.errors import UserError

IMAGE_FOLDER = "image-folder"
"""``RawDataset.kind`` of images in folders, whose classes have the names of the folders."""


@dataclass(frozen=True)
class RawSplit:
    """The samples of one split, in the source's order.

    Attributes:
        images: uint8 [samples, height, width, 3], made contiguous if it is a view.
        labels: int64 [samples], class index, or -1 if the split has no labels; converted from other integers.
        ids: int64 [samples], identifies a sample in its source; unique within the split. Converted, too.

    Raises:
        UserError: they are anything else. A plug-in may have made them.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __post_init__(self) -> None:
        images, count = self.images, len(self.images)
        if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[3:] == (3,)):
            raise UserError(f"images of RawSplit are {_described(images)}; give uint8 [samples, height, width, 3]")
        if not all(1 <= side <= MAX_SIDE for side in images.shape[1:3]):
            raise UserError(f"images of RawSplit are {_described(images)}; give 1 to {MAX_SIDE} pixels a side")
        object.__setattr__(self, "images", np.ascontiguousarray(images))
        for name, values in (("labels", self.labels), ("ids", self.ids)):
            if not (isinstance(values, np.ndarray) and values.dtype.kind in "iu" and values.shape == (count,)):
                raise UserError(f"{name} of RawSplit are {_described(values)}; give int64 [{count}], one per image")
            require_int64(values, f"{name} of RawSplit")
            # Hashes of ids and counts of labels depend on their type.
            object.__setattr__(self, name, values.astype(np.int64, copy=False))
        ids, counts = np.unique(self.ids, return_counts=True)
        if len(ids) != count:
            raise UserError(f"ids of RawSplit: {ids[counts > 1][0]} occurs more than once; give each image its own id")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_labelled(self) -> bool:
        """Whether the samples have labels; all of them have, or none, in a :class:`RawDataset`."""
        return bool(self.labels.max() >= 0)

    def resized(self, size: int) -> RawSplit:
        """Return the split with every image resized to ``size`` x ``size``."""
        return RawSplit(resize_images(self.images, size), self.labels, self.ids)


@dataclass(frozen=True)
class RawDataset:
    """The content of a source.

    Attributes:
        kind: the source's format, for example ``image-folder``.
        classes: class names, in label order; empty if there are no labels. Distinct, converted to Unicode's form NFC.
        splits: at least one of train, val and test, none of them empty, all with the same image shape. All samples of
            a split have labels, or none; those of train have.
        notes: what was passed over or changed when the source was read, one line each.
        names: of a split's files in the source, by sample id; a split whose samples are not files is absent.
        tables: names of the files in the source that may hold labels, which are not read.

    Raises:
        UserError: the classes, the splits, their shapes, labels or names are anything else. A plug-in may have made
            them.
    """

    kind: str
    classes: tuple[str, ...]
    splits: dict[str, RawSplit]
    notes: tuple[str, ...] = ()
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tables: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if wrong := [name for name in self.classes if not isinstance(name, str)]:
            raise UserError(f"classes of RawDataset: {wrong[0]!r} is {type(wrong[0]).__name__}; give each class a name")
        object.__setattr__(self, "classes", tuple(unicodedata.normalize("NFC", name) for name in self.classes))
        if twice := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise UserError(f"classes of RawDataset: '{twice[0]}' occurs more than once; give each class its own name")
        if unknown := [name for name in self.splits if name not in SPLITS]:
            raise UserError(f"splits of RawDataset: there is no '{unknown[0]}'; use {', '.join(SPLITS)}")
        if not any(map(len, self.splits.values())):
            raise UserError("splits of RawDataset have no sample; give at least one of train, val and test")
        if empty := [name for name, split in self.splits.items() if not len(split)]:
            raise UserError(f"splits of RawDataset: '{empty[0]}' has no sample; leave it out")
        shapes = {name: split.images.shape[1:] for name, split in self.splits.items()}
        if len(set(shapes.values())) > 1:
            raise UserError(f"splits of RawDataset have images of different shapes, {shapes}; give them one shape")
        for name, split in self.splits.items():
            lowest, highest = int(split.labels.min()), int(split.labels.max())
            if name == "train" and lowest == highest == -1:
                raise UserError(
                    "splits of RawDataset: 'train' has no labels, all are -1, and training requires them; number the "
                    "classes from 0, or call the split 'test', which may be without labels"
                )
            if not lowest == highest == -1 and (lowest < 0 or highest >= len(self.classes)):
                raise UserError(
                    f"splits of RawDataset: '{name}' has the labels {lowest} to {highest} for {len(self.classes)} "
                    "classes; number the classes from 0, or give all images of val or test -1, which is without labels"
                )
            names, ids = self.names_of(name), split.ids
            if names and not 0 <= ids.min() <= ids.max() < len(names):
                raise UserError(
                    f"names of RawDataset: '{name}' has the ids {ids.min()} to {ids.max()} for {len(names)} names; "
                    "give a name for each id from 0, or none"
                )

    def names_of(self, split: str) -> tuple[str, ...]:
        """Names by sample id of a split, or of train if the split is held out of it; empty if there are none."""
        return self.names.get(split if split in self.splits else "train", ())


def _described(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def labelled_split(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int, where: str) -> RawSplit:
    """Create a split whose sample ids are positions.

    Raises:
        UserError: a label is negative or not below ``classes``.
    """
    lowest = labels.min(initial=0)
    if lowest < 0:
        raise UserError(f"{where}: label {lowest} of image {labels.argmin()} is negative; number the classes from 0")
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        raise UserError(f"{where}: label {labels[wrong[0]]} of image {wrong[0]} is not one of the {classes} classes")
    return RawSplit(images, labels, np.arange(len(images), dtype=np.int64))
