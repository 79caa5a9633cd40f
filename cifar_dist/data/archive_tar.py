"""Read the members of a tar, compressed by gzip or not, to its last byte."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cifar_dist.data.archive_member import (
    BASE_ALLOWANCE,
    MAX_RATIO,
    Member,
    decompression_bomb,
    limited,
    safe_name,
)
from cifar_dist.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def walk_tar(path: Path) -> Iterator[Member]:
    """Yield the members of a tar, which may be compressed with gzip.

    Raises:
        UserError: it expands too far, or contains something no dataset needs.
        Exception: of tarfile, gzip and zlib, or ValueError, for one that is damaged or truncated.
    """
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        limit = BASE_ALLOWANCE + (MAX_RATIO if gzipped else 1) * path.stat().st_size
        stream = _BoundedStream(gzip.GzipFile(fileobj=file) if gzipped else file, limit, path)
        with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8") as tar:
            for info in tar:
                name = safe_name(path, info.name)
                if info.isdir():
                    if name:
                        yield Member(name + "/")
                    continue
                if not info.isreg() or info.issparse():
                    kind = "a link" if info.islnk() or info.issym() else "a device, a pipe or a sparse file"
                    raise UserError(f"{path}: '{info.name}' is {kind}; create the archive from regular files")
                if info.size > limit and gzipped:
                    raise decompression_bomb(path)
                if not 0 <= info.size <= limit:  # tarfile would skip a terabyte that does not exist for ten minutes
                    raise ValueError("a member's header is damaged")
                yield Member(name, limited(path, name, info.size, partial(_extract, tar, info)))
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory
            _require_end(tar)
        # tarfile accepts an archive truncated between members.
        if stream.tail.count(0) != tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it has no end-of-archive marker")


def _require_end(tar: tarfile.TarFile) -> None:
    """Read a tar after its last member to the end of the file; gzip verifies its checksum only there.

    Raises:
        ValueError: the rest is more than zeros.
    """
    stream = tar.fileobj
    assert stream is not None
    if any(stream.read(tarfile.BLOCKSIZE)):  # tarfile mistakes a corrupt header for the end of the archive
        raise ValueError("a member's header is damaged")
    require_zeros(stream.read)


def require_zeros(read: Callable[[int], bytes]) -> None:
    """Read a tar after its end to the end of the file; no program reads the second of two tars in one file.

    Raises:
        ValueError: it is more than zeros.
    """
    while rest := read(1 << 20):
        if any(rest):
            raise ValueError("data follows its end, as in tars joined with cat; tar -xif unpacks all of them")


def _extract(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None
    return file.read()


class _BoundedStream(io.RawIOBase):
    """A stream that raises after ``limit`` bytes, and remembers the last block in ``tail``."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, limit: int, path: Path) -> None:
        self._stream, self._left, self._path = stream, limit, path
        self.tail = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self._stream.read(len(view))
        view[: len(data)] = data
        self._left -= len(data)
        if self._left < 0:
            raise decompression_bomb(self._path)
        self.tail = (self.tail + data[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        return len(data)
