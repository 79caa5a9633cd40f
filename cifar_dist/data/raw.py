"""A dataset decoded into memory, before it is packed."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_dist.data.image import resize
from cifar_dist.data.image_files import MAX_SIDE
from cifar_dist.data.memory import require_memory_for_images
from cifar_dist.errors import UserError
from cifar_dist.formatting import list_some
from cifar_dist.launch.launched import local_processes

SPLITS = ("train", "val", "test")
SPLIT_WORDS: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Words for a split in the names of folders and tars, in lower case."""
MEANT_WORDS: Final = {**SPLIT_WORDS, "eval": "val", "evaluation": "val"}
"""The same, and words that are not read as a split, though they mean one."""
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
            _require_int64(values, f"{name} of RawSplit")
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


def resize_images(
    images: NDArray[np.uint8],
    size: int,
    where: str = "the source",
    remedy: str = "use a smaller size, or fewer images",
    *,
    copies: int = 1,
) -> NDArray[np.uint8]:
    """Resize images, uint8 [samples, height, width, 3], to ``size`` x ``size``.

    ``where``, ``remedy`` and ``copies`` are as for :func:`require_memory_for_images`.
    """
    if images.shape[1:3] == (size, size):
        return images
    require_memory_for_images(where, len(images), (size, size, 3), remedy, copies=copies)
    resized = np.empty((len(images), size, size, 3), np.uint8)
    for row, image in enumerate(images):
        resized[row] = np.asarray(resize(Image.fromarray(image), size))
    return resized


def planes_note(arrays: Sequence[str]) -> str:
    """Say how the flat rows of arrays are read, which :func:`as_images` cannot tell from rows of pixels."""
    return (
        f"read the rows of {list_some(arrays)} as the red, the green and the blue plane of an image, as in CIFAR's "
        "files; for rows of pixels store images.reshape(-1, height, width, 3)"
    )


def as_images(value: object, where: str) -> NDArray[np.uint8]:
    """Convert images to uint8 [samples, height, width, 3].

    Args:
        value: a uint8 array: [samples, height, width, 3 or 1], [samples, height, width], or the layout of the CIFAR
            files, [samples, 3 * side * side] with the red, green and blue planes in row-major order.
        where: prefix of error messages.

    Raises:
        UserError: ``value`` is anything else, has no samples, or does not fit in the memory of each process of this
            machine beside the file: grey images take three times their size.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        what = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        scale = ", or for values from 0 to 1 (255 * images).round().astype('uint8')" if "float" in str(what) else ""
        way = f"as in images.astype('uint8') for values from 0 to 255{scale}"
        raise UserError(f"{where} is {what}; store images as an array of uint8, {way}")
    side = math.isqrt(value.shape[1] // 3) if value.ndim == 2 else 0
    match value.shape:
        case (_, pixels) if side and pixels == 3 * side * side:
            value = value.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
        case (_, _, _) if not _conversion(value.shape):
            value = np.broadcast_to(value[..., None], (*value.shape, 3))
        case (_, _, _, 1):
            value = np.broadcast_to(value, (*value.shape[:3], 3))
        case (_, _, _, 3):
            pass
        case _:
            way = _conversion(value.shape)
            raise UserError(
                f"{where} has shape {value.shape}; expected [N, height, width, 3] or [N, 3 * side * side]"
                f"{': ' * bool(way)}{way}"
            )
    if 0 in value.shape or max(value.shape[1:3]) > MAX_SIDE:
        raise UserError(
            f"{where} has shape {value.shape}; expected at least one image, with 1 to {MAX_SIDE} pixels a side"
        )
    if not (value.flags.c_contiguous and value.flags.writeable):  # torch requires writable memory
        remedy = "store fewer or smaller images"
        require_memory_for_images(where, len(value), value.shape[1:], remedy, copies=local_processes())
    return np.require(value, requirements=["C", "W"])


def _conversion(shape: tuple[int, ...]) -> str:
    """Return the expression that converts images of a shape that other programs write; empty if none does."""
    match shape:
        case (_, pixels) if side := _side(pixels):
            return f"images.reshape(-1, {side}, {side})"
        case (_, 1 | 3 as planes, pixels) if side := _side(pixels):
            return f"images.reshape(-1, {planes}, {side}, {side}).transpose(0, 2, 3, 1)"
        case (_, pixels, 1 | 3 as channels) if side := _side(pixels):
            return f"images.reshape(-1, {side}, {side}, {channels})"
        case (_, 1 | 3, _, _):
            return "images.transpose(0, 2, 3, 1)"
        case (_, _, 1 | 3, _):
            return "images.transpose(3, 0, 1, 2)"
        case (_, _, _, 4):
            return "images[..., :3], without the transparency"
    return ""


def _side(pixels: int) -> int:
    """Return the side of a square of so many pixels; 0 if it is none, or too small for an image."""
    side = math.isqrt(pixels)
    return side if side * side == pixels and side > 3 else 0


def as_integers(value: object, count: int, where: str) -> NDArray[np.int64]:
    """Convert a list or an array ([count] or [count, 1]) of integers to int64 [count].

    Raises:
        UserError: ``value`` is anything else; the message begins with ``where``.
    """
    if isinstance(value, list) and all(type(item) is int and abs(item) < 2**63 for item in value):
        value = np.array(value, dtype=np.int64)
    if isinstance(value, list) and any(isinstance(item, str | bytes) for item in value):
        raise text_error(where)
    one_hot = ""
    if isinstance(value, np.ndarray) and value.ndim == 2 and len(value) == count and value.shape[1] > 1:
        one_hot = " (argmax(1) of one-hot labels)"
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        cast = one_hot or (" (astype(int))" if isinstance(value, np.ndarray) and value.dtype.kind in "fb" else "")
        raise UserError(f"{where} is not a list of integers; store one integer per image{cast}")
    if value.shape not in ((count,), (count, 1)):
        raise UserError(f"{where} has shape {value.shape} for {count} images; store one integer per image{one_hot}")
    _require_int64(value, where)
    return value.reshape(-1).astype(np.int64)


def _require_int64(values: NDArray[np.integer], where: str) -> None:
    if values.dtype == np.uint64 and values.max(initial=0) >= 2**63:
        raise UserError(f"{where} contains {values.max()}; use integers below 2**63")


def text_error(where: str) -> UserError:
    """Return the error of labels or ids that are text."""
    remedy = "for labels: classes, y = np.unique(names, return_inverse=True)"
    if where.removesuffix(".npy").endswith("ids"):
        remedy = "or predict a folder of image files, whose names are then the ids"
    return UserError(f"{where} holds text; store numbers, {remedy}")


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
