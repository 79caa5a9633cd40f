"""One WebDataset tar, packed here or made elsewhere: its samples, and where their members lie in it."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import IO, Final, get_args

import numpy as np

from cifar_dist.data.image import Codec
from cifar_dist.data.manifest import UNLABELLED, Shard
from cifar_dist.errors import UserError
from cifar_dist.files import sha256

MAX_CLASSES: Final = 100_000
"""A larger label is a number of something else."""

Place = tuple[int, int]
"""Offset and size of a member's data in its tar, in bytes."""

_CODECS: Final[tuple[Codec, ...]] = get_args(Codec)
_META = re.compile(r"__[^/]*__($|/)")  # webdataset passes over these


def index_tar(root: Path, name: str) -> tuple[Shard, Codec]:
    """What a manifest says of the tar ``root/name``, and how its images are stored.

    Raises:
        UserError: no plain tar, not whole, or not of ``KEY.png`` (jpg, jpeg, webp or npy) and perhaps ``KEY.cls``.
    """
    path = root / name
    try:
        with path.open("rb") as file:
            samples = members(file)
            codec = _codec(samples)
            labelled = _labelled(samples)
            labels = [_label(key, file, parts["cls"]) if labelled else UNLABELLED for key, parts in samples.items()]
        image = np.array([parts[codec] for parts in samples.values()], dtype=np.int64)
        label = np.array([parts["cls"] for parts in samples.values() if labelled], dtype=np.int64).reshape(-1, 2)
        shard = Shard(
            name=name,
            bytes=path.stat().st_size,
            sha256=sha256(path),
            keys=tuple(samples),
            labels=np.array(labels, dtype=np.int64),
            image_offset=image[:, 0],
            image_size=image[:, 1],
            label_offset=label[:, 0],
            label_size=label[:, 1],
        )
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise UserError(f"{path} is no tar to train on: {str(error)[:200]}; mend it or take it out") from None
    return shard, codec


def members(file: IO[bytes]) -> dict[str, dict[str, Place]]:
    """The samples of a tar: key to suffix, in lower case, to place. As webdataset groups them.

    Raises:
        ValueError, tarfile.TarError: no such tar, not whole, or members that webdataset would read in another way.
    """
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, dict[str, Place]] = {}
    last = None
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.isdir() or _META.match(member.name):
                continue
            if not member.isreg() or member.issparse():
                raise ValueError(f"'{member.name}' in it is no plain file")
            key, suffix = base_plus_ext(member.name)
            if key is None:
                continue
            if key != last and key in samples:
                raise ValueError(f"the files of sample '{key}' do not follow each other")
            parts = samples.setdefault(key, {})
            if suffix.lower() in parts:
                raise ValueError(f"'{key}.{suffix.lower()}' is in it twice")
            parts[suffix.lower()] = member.offset_data, member.size
            last = key
        file.seek(tar.offset)  # tarfile takes a damaged header for the end
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"it is damaged or cut short at byte {tar.offset:,}")
    return samples


def _codec(samples: dict[str, dict[str, Place]]) -> Codec:
    """The one format that all images have."""
    if not samples:
        raise ValueError("it holds no samples")
    found: dict[Codec, str] = {}
    for key, parts in samples.items():
        images = [codec for codec in _CODECS if codec in parts]
        if len(images) != 1:
            known = ", ".join(_CODECS)
            raise ValueError(f"sample '{key}' has .{', .'.join(parts)} and not one of {known}")
        found.setdefault(images[0], key)
    if len(found) > 1:
        raise ValueError(f"its images are stored as {' and '.join(found)}; one format is needed")
    return next(iter(found))


def _labelled(samples: dict[str, dict[str, Place]]) -> bool:
    without = [key for key, parts in samples.items() if "cls" not in parts]
    if without and len(without) < len(samples):
        raise ValueError(f"sample '{without[0]}' has no .cls, and others have")
    return not without


def _label(key: str, file: IO[bytes], place: Place) -> int:
    offset, size = place
    file.seek(offset)
    text = file.read(min(size, 20)).strip()
    if not text.isdigit() or int(text) >= MAX_CLASSES:
        raise ValueError(f"'{key}.cls' is {text!r:.40}, and not the number of a class")
    return int(text)
