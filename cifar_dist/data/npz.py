"""numpy's npz files, read without pickles and without believing what their headers claim."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.archives import member_names, read_members
from cifar_dist.data.raw import SPLITS, RawDataset, as_images, as_integers, labelled
from cifar_dist.errors import UserError

SUFFIX = ".npz"
_MAX_CLASSES = 100_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """The arrays of an npz by name, numbers only.

    Raises:
        UserError: not an npz, damaged, or an array of anything but numbers.
    """
    names = {name for name in member_names(path) if name.endswith(".npy")}
    return {name.removesuffix(".npy"): _npy(data, f"{path}: {name}") for name, data in read_members(path, names)}


def is_labelled(path: Path) -> bool:
    """Whether an npz holds labelled images: ``x_train``, ``x_val`` or ``x_test``."""
    return not {f"x_{split}.npy" for split in SPLITS}.isdisjoint(member_names(path))


def read_labelled_npz(path: Path) -> RawDataset:
    """The dataset in ``x_train``, ``y_train`` and so on, whose classes are called by their numbers.

    Raises:
        UserError: it holds no such arrays, or they do not fit each other.
    """
    arrays = read_npz(path)
    found = [split for split in SPLITS if f"x_{split}" in arrays]
    if not found:
        raise UserError(f"{path} holds no x_train, x_val or x_test")
    images = {split: as_images(arrays[f"x_{split}"], f"{path}: x_{split}") for split in found}
    labels = {split: as_integers(arrays.get(f"y_{split}"), len(images[split]), f"{path}: y_{split}") for split in found}
    shapes = {images[split].shape[1:] for split in found}
    if len(shapes) > 1:
        raise UserError(f"{path}: the splits have images of different shapes {sorted(shapes)}; make them one shape")
    classes = max(int(of_split.max()) for of_split in labels.values()) + 1
    if classes > _MAX_CLASSES:
        raise UserError(f"{path}: a label of {classes - 1} would make {classes:,} classes; labels count from 0")
    splits = {split: labelled(images[split], labels[split], classes, f"{path}: y_{split}") for split in found}
    return RawDataset("npz", tuple(str(label) for label in range(classes)), splits)


def _npy(data: bytes, where: str) -> NDArray[np.generic]:
    """One array. The shape is checked against the bytes that are there before anything is allocated."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"format version {version}")
        shape, fortran, dtype = _HEADERS[version](file)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UserError(f"{where} is no numpy array ({str(error)[:80]!a})") from None
    rest = memoryview(data)[file.tell() :]
    if dtype.kind not in "biuf":
        raise UserError(f"{where} is of type {str(dtype)[:40]!a}; only numbers are read")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(rest):
        raise UserError(f"{where} has {len(rest):,} bytes for shape {shape[:8]} of {dtype}; it is damaged")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")
