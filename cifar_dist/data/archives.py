"""The files of a folder or an archive, one after the other, in memory. Nothing is ever extracted to disk.

What an archive says is not trusted: a name that would leave the folder, a link, a device or a sparse file is
refused by name, and so is what grows far beyond its size when it is decompressed.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cifar_dist.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")

MAX_MEMBER = 1 << 30
"""Bytes of one member; the largest that is known, CIFAR-100's ``train``, has 156 MB."""
MAX_MEMBERS = 10_000_000
MAX_RATIO = 100
"""Bytes that one byte of an archive may become; images and CIFAR batches stay under 10."""
_ALWAYS_ALLOWED = 64 << 20  # bytes: small archives of flat test images do compress well

_FOLDER_DEPTH = 4  # TOP/SPLIT/CLASS/FILE; also ends loops of symbolic links
# RuntimeError and NotImplementedError: zipfile's for an encrypted member and for an unknown compression.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    NotImplementedError,
)


def member_names(path: Path) -> list[str]:
    """Names of the regular files of a folder or archive, parts separated by ``/``; hidden files are left out.

    Raises:
        UserError: not readable, damaged or cut short, or it holds what no dataset needs.
    """
    with _readable(path):
        return [member.name for member in _walk(path)]


def read_members(path: Path, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the wanted files, in the order in which they lie there; raises as :func:`member_names`."""
    with _readable(path):
        for member in _walk(path):
            if member.name in wanted:
                yield member.name, member.read()


@dataclass(frozen=True)
class _Member:
    """A regular file: its name, and a way to its bytes that is good until the next member is drawn."""

    name: str
    read: Callable[[], bytes]


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (*_DAMAGE, gzip.BadGzipFile) as error:
        what = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged, cut short or no archive ({what}); fetch or make it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _walk(path: Path) -> Iterator[_Member]:
    seen: set[str] = set()
    for member in _walk_folder(path) if path.is_dir() else _walk_archive(path):
        if len(seen) == MAX_MEMBERS:
            raise UserError(f"{path} holds more than {MAX_MEMBERS:,} files; pack a smaller part of it")
        if member.name in seen:
            raise UserError(f"{path} holds '{member.name}' twice; make the archive again")
        seen.add(member.name)
        if not any(part.startswith((".", "__MACOSX")) for part in member.name.split("/")):
            yield member


def _walk_folder(root: Path, prefix: str = "", depth: int = _FOLDER_DEPTH) -> Iterator[_Member]:
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = prefix + entry.name
            if entry.is_dir():
                if depth > 1 and not entry.name.startswith("."):
                    yield from _walk_folder(Path(entry.path), name + "/", depth - 1)
            elif entry.is_file():
                _check(root, name, entry.stat().st_size)
                yield _Member(name, Path(entry.path).read_bytes)


def _walk_archive(path: Path) -> Iterator[_Member]:
    if path.suffix.lower() in (".zip", ".npz"):  # numpy's format is a zip of arrays
        return _walk_zip(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path} is not a folder or an archive ({', '.join(SUFFIXES)})")
    return _walk_tar(path)


def _walk_tar(path: Path) -> Iterator[_Member]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        limit = _ALWAYS_ALLOWED + (MAX_RATIO if packed else 1) * path.stat().st_size
        stream = _Bounded(gzip.GzipFile(fileobj=file) if packed else file, limit, path)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for info in tar:
                name = _safe_name(path, info.name)
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    kind = "a link" if info.islnk() or info.issym() else "a device, a pipe or a sparse file"
                    raise UserError(f"{path}: '{info.name}' is {kind}, which a dataset does not need; not read")
                _check(path, name, info.size)
                yield _Member(name, lambda tar=tar, info=info: _extract(tar, info))  # type: ignore[misc]
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        # tarfile takes a cut at a member's end for the end of the archive, and gzip checks its sum at its own.
        while stream.read(1 << 20):
            pass
        if stream.tail.count(0) != tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it has no end mark")


def _extract(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None
    return file.read()


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than ``limit`` bytes, and remembers the last block."""

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
            raise _bomb(self._path)
        self.tail = (self.tail + data[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        return len(data)


def _walk_zip(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        # A member never gives more than the size it declares, so the sum bounds what is read.
        if sum(info.file_size for info in infos) > _ALWAYS_ALLOWED + MAX_RATIO * path.stat().st_size:
            raise _bomb(path)
        for info in infos:
            name = _safe_name(path, info.filename)
            if info.is_dir():
                continue
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise UserError(f"{path}: '{name}' is a link or a device, which a dataset does not need; not read")
            _check(path, name, info.file_size)
            yield _Member(name, lambda info=info: archive.read(info))  # type: ignore[misc]


def _safe_name(path: Path, name: str) -> str:
    """``name`` without ``./``; UserError where it would leave the folder or upset a terminal."""
    parts = re.split(r"[/\\]", name)
    if not name or not name.isprintable():
        raise UserError(f"{path}: the member name {name!a} is not printable; not read")
    if parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise UserError(f"{path}: the member name '{name}' leads out of the folder; not read")
    return "/".join(part for part in parts if part not in ("", "."))


def _check(path: Path, name: str, size: int) -> None:
    if not 0 <= size <= MAX_MEMBER:
        raise UserError(f"{path}: '{name}' has {size:,} bytes, more than the {MAX_MEMBER:,} that are read")


def _bomb(path: Path) -> UserError:
    return UserError(f"{path} grows to more than {MAX_RATIO} times its size when it is decompressed; not read")
