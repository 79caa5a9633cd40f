"""Read NumPy's npz files without unpickling and without trusting their headers."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.archives import list_members, read_members
from cifar_dist.data.arrays import as_images, as_integers, planes_note, text_error
from cifar_dist.data.raw import RawDataset, labelled_split
from cifar_dist.data.split_words import SPLITS
from cifar_dist.errors import UserError
from cifar_dist.formatting import list_some

MAX_CLASSES: Final = 100_000
"""A label at or above this limit, of an npz or of a tar, is refused: it numbers something other than a class."""
_LABELLED_NAMES = tuple(f"{kind}_{split}" for split in SPLITS for kind in "xy")
LABELLED_HINT = (
    "labelled images are named x_train, with labels in y_train, and x_val, y_val, x_test, y_test: "
    "np.savez('NAME.npz', x_train=images, y_train=labels)"
)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def array_names(path: Path) -> list[str]:
    """List the names of the arrays of an npz.

    Raises:
        UserError: the file is not an npz.
    """
    return [name.removesuffix(".npy") for name in list_members(path, show=False).names if name.endswith(".npy")]


def read_npz(path: Path, names: Iterable[str]) -> dict[str, NDArray[np.generic]]:
    """Read the arrays ``names`` of an npz.

    Raises:
        UserError: the file is not an npz or is corrupt, or one of these arrays is not numeric.
    """
    members = read_members(path, {f"{name}.npy" for name in names})
    return {name.removesuffix(".npy"): _parse_npy(data, f"{path}: {name}") for name, data in members}


def is_labelled(path: Path) -> bool:
    """Whether an npz contains labelled images or their labels: ``x_train``, ``y_train`` and so on."""
    return not set(_LABELLED_NAMES).isdisjoint(array_names(path))


def read_labelled_npz(path: Path) -> RawDataset:
    """Read the dataset in ``x_train``, ``y_train`` and so on; classes are named by number.

    Raises:
        UserError: the arrays do not exist or do not match each other, or no image has the label 0.
    """
    names = array_names(path)
    arrays = read_npz(path, [name for name in names if name in _LABELLED_NAMES])
    _refuse_unpaired(path, arrays)
    found = [split for split in SPLITS if f"x_{split}" in arrays]
    images = {split: as_images(arrays[f"x_{split}"], f"{path}: x_{split}") for split in found}
    labels = {split: as_integers(arrays[f"y_{split}"], len(images[split]), f"{path}: y_{split}") for split in found}
    shapes = {images[split].shape[1:] for split in found}
    if len(shapes) > 1:
        raise UserError(f"{path}: the splits have images of different shapes, {sorted(shapes)}; give them one shape")
    classes = max(int(of_split.max()) for of_split in labels.values()) + 1
    if classes > MAX_CLASSES:
        raise UserError(
            f"{path}: the label {classes - 1} implies {classes:,} classes; number labels consecutively from 0"
        )
    splits = {split: labelled_split(images[split], labels[split], classes, f"{path}: y_{split}") for split in found}
    lowest = min(int(of_split.min()) for of_split in labels.values())
    if lowest > 0:
        raise UserError(
            f"{path}: the labels are {lowest} to {classes - 1}, and class 0 has no image; number the classes from 0, "
            f"as in y_train = y_train - {lowest}"
        )
    others = [name for name in names if name not in _LABELLED_NAMES]
    notes = [f"passed over the other arrays: {list_some(others)}"] if others else []
    if flat := [f"x_{split}" for split in found if arrays[f"x_{split}"].ndim == 2]:
        notes.append(planes_note(flat))
    return RawDataset("npz", tuple(str(label) for label in range(classes)), splits, tuple(notes))


def _refuse_unpaired(path: Path, arrays: Collection[str]) -> None:
    for split in SPLITS:
        has_images, has_labels = f"x_{split}" in arrays, f"y_{split}" in arrays
        if has_labels and not has_images:
            raise UserError(f"{path} has y_{split} but no x_{split}; add the images, or remove the labels")
        if has_images and not has_labels:
            raise UserError(
                f"{path} has x_{split} but no y_{split}; add the labels, or for images to predict save them as "
                "'data' with 'ids'"
            )


def _parse_npy(data: bytes, where: str) -> NDArray[np.generic]:
    """Parse one array. Its shape is checked against the number of bytes before anything is allocated."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"format version {version}")
        shape, fortran, dtype = _HEADERS[version](file)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UserError(f"{where} is not a NumPy array ({str(error)[:80]!a}); save it again with np.savez") from None
    rest = memoryview(data)[file.tell() :]
    if dtype.kind in "US":
        raise text_error(where)
    if dtype.kind not in "biuf":
        raise UserError(
            f"{where} has the type {str(dtype)[:40]!a}; convert it to numbers, as in y_train.astype('int64')"
        )
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(rest):
        raise UserError(
            f"{where} is corrupt: {len(rest):,} bytes for the shape {shape[:8]} of {dtype}; save it again with np.savez"
        )
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")
