"""A shard, one tar of a split: its checksum, and the labels and positions of its samples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNLABELLED = -1
"""The label of a sample without one."""
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
SHARD_NAME = re.compile(rf"({_PART}/)?{_PART}\.tar")
"""A tar in the dataset's folder, or in a folder in it."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
COLUMNS = ("labels", "image_offset", "image_size", "label_offset", "label_size")
"""Those of a shard's attributes that are arrays."""


@dataclass(frozen=True)
class Shard:
    """One tar of a split, and the positions of its samples.

    Attributes:
        name: file name inside the dataset's folder, with at most one folder before it.
        bytes: size of the file.
        sha256: checksum of the file, hexadecimal.
        keys: WebDataset key of each sample, in the order of the tar.
        labels: int64 [samples], class index, or -1 if the source has no labels.
        image_offset, image_size: int64 [samples], the ``KEY.png`` or ``KEY.npy`` member's data, in bytes.
        label_offset, label_size: int64 [samples], the ``KEY.cls`` member's data (empty without labels).
        names: path of each sample's file in its source; empty where samples were not files. Optional in the JSON.
    """

    name: str
    bytes: int
    sha256: str
    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    image_offset: NDArray[np.int64]
    image_size: NDArray[np.int64]
    label_offset: NDArray[np.int64]
    label_size: NDArray[np.int64]
    names: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        return len(self.keys)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "samples": self.samples,
            "keys": list(self.keys),
            **{column: getattr(self, column).tolist() for column in COLUMNS},
            **({"names": list(self.names)} if self.names else {}),
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Shard:
        """Parse a shard entry.

        Raises:
            ValueError, KeyError, TypeError: it is not valid.
        """
        columns = {column: _int_column(raw[column], column) for column in COLUMNS}
        shard = cls(
            name=str(raw["name"]),
            bytes=int(raw["bytes"]),
            sha256=str(raw["sha256"]),
            keys=tuple(str(key) for key in raw["keys"]),
            **columns,
            names=tuple(str(name) for name in raw.get("names", ())),
        )
        if len(shard.names) not in (0, shard.samples):
            raise ValueError(f"shard {shard.name}: {len(shard.names)} names for {shard.samples} samples")
        if not SHARD_NAME.fullmatch(shard.name):
            raise ValueError(f"shard name {shard.name!r} is not a plain file name ending in .tar")
        if not _SHA256.fullmatch(shard.sha256):
            raise ValueError(f"shard {shard.name}: sha256 is not 64 hexadecimal digits")
        lengths = {raw["samples"], len(shard.labels), len(shard.image_offset), len(shard.image_size), shard.samples}
        if len(lengths) != 1:
            raise ValueError(f"shard {shard.name}: its columns have different lengths {sorted(lengths)}")
        for offset, size in ((shard.image_offset, shard.image_size), (shard.label_offset, shard.label_size)):
            if len(offset) != len(size) or len(offset) not in (0, shard.samples):
                raise ValueError(f"shard {shard.name}: an offset has no size")
            outside = (offset < 0) | (size < 0) | (size > shard.bytes) | (offset > shard.bytes - size)
            if outside.any():  # computed without offset + size, which may overflow
                raise ValueError(f"shard {shard.name}: a member lies outside the file's {shard.bytes} bytes")
        return shard


def column_difference(now: Shard, before: Shard) -> str:
    """Say in brackets where the columns of two entries of one shard differ first; empty if they are equal."""
    for column in COLUMNS:
        old, new = getattr(before, column), getattr(now, column)
        if len(old) != len(new):
            return f"({len(old)} {column} of {now.name}, now {len(new)})"
        if (different := np.flatnonzero(old != new)).size:
            first = different[0]
            return f"({column} of sample {first} of {now.name}: {old[first]}, now {new[first]})"
    return ""


def _int_column(values: list[int], name: str) -> NDArray[np.int64]:
    column = np.asarray(values, dtype=np.int64)
    if column.ndim != 1 or (len(values) and not all(type(value) is int for value in values)):
        raise ValueError(f"'{name}' is not a list of integers")
    return column
