"""Index one WebDataset tar, whoever wrote it: its samples, and the offset and size of each member."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from cifar_dist.data.archive_tar import require_zeros
from cifar_dist.data.image import CODECS, Codec
from cifar_dist.data.npz import MAX_CLASSES
from cifar_dist.data.shard import UNLABELLED, Shard
from cifar_dist.errors import UserError
from cifar_dist.files.checksums import sha256
from cifar_dist.files.reading import is_utf8
from cifar_dist.formatting import and_more

ByteRange = tuple[int, int]
"""Offset and size of a member's data in its tar, in bytes."""

_LABEL_BYTES = 64  # of a .cls: a number, and whatever space is around it
_LONGEST_PROBLEM = 500  # characters; it may quote names of any length
_METADATA = re.compile(r"__[^/]*__($|/)")  # members that webdataset skips


class IndexedTar(NamedTuple):
    """A tar that can be trained on.

    Attributes:
        shard: its manifest entry.
        codec: how its images are stored.
        passed_over: number of members of each kind that are neither image nor label. The kind is their suffix,
            ``.json`` for example, or else ``hidden`` or ``without a suffix``.
    """

    shard: Shard
    codec: Codec
    passed_over: Counter[str]


class TarMembers(NamedTuple):
    """The members of a tar, by the sample that they belong to.

    Attributes:
        samples: key to its suffixes, in lower case, and their byte ranges.
        keyless: number of members of each kind whose names do not start with a key.
    """

    samples: dict[str, dict[str, ByteRange]]
    keyless: Counter[str]


def index_tar(root: Path, name: str) -> IndexedTar:
    """Index the tar ``root/name``.

    Raises:
        UserError: the file is not an intact, uncompressed tar of ``KEY.png`` (jpg, jpeg, webp or npy) with or without
            ``KEY.cls``.
    """
    path = root / name
    try:
        with path.open("rb") as file:
            samples, passed_over = group_members(file)
            codec = _common_codec(samples)
            labelled = _has_labels(samples)
            passed_over.update(f".{part}" for parts in samples.values() for part in parts.keys() - {codec, "cls"})
            labels = [
                _read_label(key, file, parts["cls"]) if labelled else UNLABELLED for key, parts in samples.items()
            ]
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
        raise UserError(
            f"{path} cannot be used for training: {str(error)[:_LONGEST_PROBLEM]}; fix or remove it"
        ) from None
    return IndexedTar(shard, codec, passed_over)


def group_members(file: IO[bytes]) -> TarMembers:
    """Group the members of a tar into samples as webdataset groups them.

    Raises:
        ValueError, tarfile.TarError: the file is not an intact tar, or webdataset would read its members differently.
    """
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, dict[str, ByteRange]] = {}
    keyless = Counter[str]()
    last: str | None = None
    between: str | None = None  # the hidden member since the last one of a sample
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:  # whatever the locale
        for member in tar:
            if member.isdir() or _METADATA.match(member.name):
                continue
            if not member.isreg() or member.issparse():
                raise ValueError(f"'{member.name}' is not a regular file")
            if not is_utf8(member.name):
                raise ValueError(f"the name of its member '{member.name}' is not UTF-8")
            key, suffix = base_plus_ext(member.name)
            if key is None or is_of_hidden(key):
                is_hidden = member.name.rpartition("/")[2].startswith(".")
                keyless["hidden" if is_hidden else "without a suffix"] += 1
                if key is not None and last is not None:  # webdataset begins another sample there
                    between = member.name
                continue
            if key in samples and key == last and between is not None:
                raise ValueError(
                    f"the hidden '{between}' is between the members of sample '{key}', which webdataset splits there; "
                    "create it again without hidden files, on a Mac with COPYFILE_DISABLE=1 tar"
                )
            if key != last and key in samples:
                raise ValueError(f"the members of sample '{key}' are not consecutive")
            between = None
            parts = samples.setdefault(key, {})
            if suffix.lower() in parts:
                raise ValueError(f"it contains '{key}.{suffix.lower()}' twice")
            parts[suffix.lower()] = member.offset_data, member.size
            last = key
        file.seek(tar.offset)  # tarfile mistakes a corrupt header for the end of the archive
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"it is corrupt or truncated at byte {tar.offset:,}")
        require_zeros(file.read)
    return TarMembers(samples, keyless)


def is_of_hidden(key: str) -> bool:
    """Whether a key is that of the hidden files in a folder, which webdataset reads as a sample: ``x/.DS_Store``."""
    return key.endswith("/")


def _common_codec(samples: dict[str, dict[str, ByteRange]]) -> Codec:
    """Return the codec that all images share."""
    if not samples:
        raise ValueError("it contains no samples")
    found: dict[Codec, str] = {}
    for key, parts in samples.items():
        images = [codec for codec in CODECS if codec in parts]
        if len(images) != 1:
            known = ", ".join(f".{codec}" for codec in CODECS)
            longer = any(part.endswith(tuple(f".{codec}" for codec in CODECS)) for part in parts)
            hint = " (a key ends at the first dot of the file name)" if longer else ""
            suffixes = and_more([f".{part:.40}" for part in list(parts)[:3]], len(parts))
            raise ValueError(f"sample '{key:.80}' has {suffixes}, but needs exactly one of {known}{hint}")
        found.setdefault(images[0], key)
    if len(found) > 1:
        raise ValueError(f"its images are stored as {' and '.join(found)}, but must share one format")
    return next(iter(found))


def _has_labels(samples: dict[str, dict[str, ByteRange]]) -> bool:
    without = [key for key, parts in samples.items() if "cls" not in parts]
    if without and len(without) < len(samples):
        raise ValueError(f"sample '{without[0]}' has no .cls, but others do")
    return not without


def _read_label(key: str, file: IO[bytes], location: ByteRange) -> int:
    offset, size = location
    file.seek(offset)
    text = file.read(min(size, _LABEL_BYTES + 1)).strip()
    if size > _LABEL_BYTES or not text.isdigit() or int(text) >= MAX_CLASSES:
        what = f"not a class number from 0 to {MAX_CLASSES - 1}, whose name --classes FILE gives"
        raise ValueError(f"'{key}.cls' is {text!r:.40}, {what}")
    return int(text)
