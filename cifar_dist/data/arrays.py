"""Images in arrays: the pickle or npz of an unlabelled set, and the npz of a labelled one."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.archives import MAX_MEMBER, member_names, read_members
from cifar_dist.data.manifest import UNLABELLED
from cifar_dist.data.raw import SPLITS, RawDataset, RawSplit, as_images, as_integers, labelled
from cifar_dist.data.safe_pickle import read_pickle
from cifar_dist.errors import UserError

PICKLE_SUFFIXES = (".pkl", ".pickle")
SUFFIXES = (*PICKLE_SUFFIXES, ".npz")

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Unlabelled:
    """Images to be predicted.

    Attributes:
        images: uint8 [samples, height, width, 3].
        ids: int64 [samples], unique, in the file's order.
    """

    images: NDArray[np.uint8]
    ids: NDArray[np.int64]


def read_unlabelled(path: str | Path) -> Unlabelled:
    """Read a pickle or npz with ``data``, the images, and ``ids``, whole numbers that name them.

    Raises:
        UserError: not such a file, an id that occurs twice, or a pickle that asks for more than data.
    """
    path = Path(path)
    arrays = _read_arrays(path)
    missing = [key for key in ("data", "ids") if key not in arrays]
    if missing:
        keys = ", ".join(ascii(key[:40]) for key in list(arrays)[:8]) or "nothing"
        raise UserError(f"{path} has no '{missing[0]}'; an unlabelled set has 'data' and 'ids', this file has {keys}")
    images = as_images(arrays["data"], f"{path}: data")
    ids = as_integers(arrays["ids"], len(images), f"{path}: ids")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != len(ids):
        raise UserError(f"{path}: id {unique[counts > 1][0]} occurs more than once; ids must be unique")
    return Unlabelled(images, ids)


def read_arrays(path: Path) -> RawDataset:
    """The dataset in a pickle or npz: ``x_train``, ``y_train`` and so on, or an unlabelled set as split ``test``.

    Raises:
        UserError: it holds neither, or cannot be read.
    """
    found = [split for split in SPLITS if f"x_{split}.npy" in member_names(path)] if path.suffix == ".npz" else []
    if not found:
        unlabelled = read_unlabelled(path)
        labels = np.full(len(unlabelled.ids), UNLABELLED, dtype=np.int64)
        return RawDataset("unlabelled", (), {"test": RawSplit(unlabelled.images, labels, unlabelled.ids)})
    arrays = _read_npz(path)
    images = {split: as_images(arrays[f"x_{split}"], f"{path}: x_{split}") for split in found}
    labels_of = {
        split: as_integers(arrays.get(f"y_{split}"), len(images[split]), f"{path}: y_{split}") for split in found
    }
    shapes = {images[split].shape[1:] for split in found}
    if len(shapes) > 1:
        raise UserError(f"{path}: the splits have images of different shapes {sorted(shapes)}")
    classes = max(int(labels.max()) for labels in labels_of.values()) + 1
    splits = {split: labelled(images[split], labels_of[split], classes, f"{path}: y_{split}") for split in found}
    return RawDataset("npz", tuple(str(label) for label in range(classes)), splits)


def _read_arrays(path: Path) -> dict[str, object]:
    if path.suffix.lower() == ".npz":
        return dict(_read_npz(path))
    if path.suffix.lower() not in PICKLE_SUFFIXES:
        raise UserError(f"{path} is not an unlabelled set; expected one of {', '.join(SUFFIXES)}")
    try:
        if path.stat().st_size > MAX_MEMBER:
            raise UserError(f"{path} has more than the {MAX_MEMBER:,} bytes that are read; use an npz")
        return read_pickle(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    names = {name for name in member_names(path) if name.endswith(".npy")}
    return {name.removesuffix(".npy"): _npy(data, f"{path}: {name}") for name, data in read_members(path, names)}


def _npy(data: bytes, where: str) -> NDArray[np.generic]:
    """A member of an npz. The shape is checked against the bytes that are there before anything is allocated."""
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
