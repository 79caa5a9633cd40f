"""Read the files of a folder or an archive, one at a time, into memory. Nothing is extracted to disk.

Archives are not trusted: a name that leads out of the folder, a link, a device or a sparse file is refused by name,
and so is an archive that expands far beyond its size.
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
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from cifar_dist.errors import UserError, quoted
from cifar_dist.files import is_utf8
from cifar_dist.terminal.progress import progress

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")

MAX_MEMBER = 1 << 30
"""Largest size of one member in bytes; the largest in practice, CIFAR-100's ``train``, has 156 MB."""
MAX_ARRAY = 64 << 30
"""Largest size of one array of an npz in bytes; free memory is a limit too."""
MAX_MEMBERS = 10_000_000
MAX_RATIO = 100
"""Largest expansion of an archive when it is decompressed; images and CIFAR batches stay below 10."""
_BASE_ALLOWANCE = 64 << 20  # bytes beyond MAX_RATIO: small archives of uniform test images compress very well

_MAX_DEPTH = 32
_ENCRYPTED, _UTF8 = 1, 1 << 11  # bits of a zip member's flags
_ENCODINGS = "cp932 for Japanese, gbk for Chinese, cp949 for Korean, cp866 for Russian"  # of Windows
_DAMAGE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True)
class Listing:
    """The regular files of a folder or archive, path parts separated by ``/``.

    Attributes:
        names: those that are not hidden, in stored order.
        hidden: those that are, or a folder above them; without those that an operating system writes by itself.
        guessed: those whose encoding a zip does not name, read as code page 437.
    """

    names: list[str]
    hidden: list[str]
    guessed: tuple[str, ...] = ()


def list_members(path: Path, *, folders: bool = False, show: bool = True) -> Listing:
    """List the files of a folder or archive, which takes as long as to decompress it.

    Args:
        path: folder or archive.
        folders: list the folders too; their names end in ``/``.
        show: show the progress.

    Raises:
        UserError: it cannot be read, is corrupt or truncated, or contains something no dataset needs.
    """
    names: list[str] = []
    guessed: list[str] = []
    hidden = hidden_names(path) if path.is_dir() else []
    with _raise_user_errors(path), progress(f"listing {path.resolve().name}", 0, "files", show=show) as advance:
        for member in _walk(path, folders=folders):
            advance(1)
            if not _is_hidden(member.name):
                names.append(member.name)
                guessed += [member.name] if member.is_guessed else []
            elif not member.name.endswith("/"):
                hidden.append(member.name)
    return Listing(names, sorted(hidden), tuple(guessed))


def note_guessed(path: Path, listing: Listing) -> list[str]:
    """Note the names of a zip that are right only if a Western European Windows wrote them; no line without any."""
    if not listing.guessed:
        return []
    return [
        f"{path} does not name the encoding of {len(listing.guessed):,} names, read as '{listing.guessed[0]}'; if that "
        f"is scrambled, {_way_to_unpack(path)}"
    ]


def _way_to_unpack(path: Path) -> str:
    unpack = f"python -m zipfile --metadata-encoding ENCODING -e {quoted(path)} FOLDER"
    return f"unpack it with its ENCODING, and use the folder: {unpack} ({_ENCODINGS})"


def require_utf8_name(path: Path) -> None:
    """Raise UserError if the last part of a path, after which a dataset is named, is not UTF-8."""
    if not is_utf8(path.resolve().name):
        raise UserError(f"the name of '{path}' is not UTF-8; rename it")


def hidden_names(folder: Path) -> list[str]:
    """List the files of a folder as :attr:`Listing.hidden` has them. Links are not followed."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    files = [file.relative_to(folder).as_posix() for file in found]
    return sorted(name for name in files if _is_hidden(name) and not _is_of_system(name))


def read_members(path: Path, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the wanted files, in stored order; raises like :func:`list_members`."""
    with _raise_user_errors(path):
        for member in _walk(path):
            if member.name in wanted:
                yield member.name, member.read()


@dataclass(frozen=True)
class _Member:
    """A regular file, or a folder, whose name ends in ``/``.

    Attributes:
        name: path parts separated by ``/``.
        read: returns the content; valid until the next member is requested.
        is_guessed: whether the name may be scrambled, because a zip does not name its encoding.
    """

    name: str
    read: Callable[[], bytes] = bytes
    is_guessed: bool = False


@contextlib.contextmanager
def _raise_user_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except NotImplementedError as error:  # of zipfile; Windows and 7-Zip have methods that Python lacks
        what = f"{path} is compressed in a way that is not read ({str(error) or 'an unknown method'})"
        raise UserError(f"{what}; unpack it, and use the folder") from None
    except (*_DAMAGE_ERRORS, gzip.BadGzipFile) as error:
        what = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} is corrupt, truncated or not an archive ({what}); download or create it again"
        ) from None
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None


def _walk(path: Path, *, folders: bool = False) -> Iterator[_Member]:
    seen: set[str] = set()
    for member in _walk_folder(path) if path.is_dir() else _walk_archive(path):
        if len(seen) == MAX_MEMBERS:
            raise UserError(f"{path} contains more than {MAX_MEMBERS:,} files; pack a smaller part of it")
        is_folder = member.name.endswith("/")
        if is_folder and (not folders or member.name in seen):
            continue
        if member.name in seen:
            raise UserError(f"{path} contains '{member.name}' twice; create the archive again")
        seen.add(member.name)
        if not _is_of_system(member.name):
            yield member


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_of_system(name: str) -> bool:
    """Whether macOS wrote a file by itself."""
    return any(part.startswith(("._", "__MACOSX")) or part == "Icon\r" for part in name.split("/"))


def _walk_folder(root: Path, prefix: str = "", above: tuple[str, ...] = ()) -> Iterator[_Member]:
    """Walk the folder ``root/prefix``; ``above`` are the real paths of the folders that contain it."""
    folder = root / prefix
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = prefix + entry.name
            if entry.name.startswith("."):
                continue
            if not is_utf8(name):
                raise UserError(f"{root}: the name '{name}' is not UTF-8; rename it")
            if entry.is_dir():
                if os.path.realpath(entry.path) in above:
                    raise UserError(f"{root}: '{name}' is a link to a folder that contains it; remove the link")
                if len(above) == _MAX_DEPTH:
                    raise UserError(f"{root}: '{name}' is more than {_MAX_DEPTH} folders deep; move it up")
                yield _Member(name + "/")
                yield from _walk_folder(root, name + "/", above)
            elif entry.is_file():
                _require_size(root, name, entry.stat().st_size)
                yield _Member(name, Path(entry.path).read_bytes)
            else:
                kind = "a link to a file that does not exist" if entry.is_symlink() else "a device, a pipe or a socket"
                raise UserError(f"{root}: '{name}' is {kind}; remove it")


def _walk_archive(path: Path) -> Iterator[_Member]:
    if path.suffix.lower() in (".zip", ".npz"):  # numpy's format is a zip of arrays
        return _walk_zip(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(
            f"{path} is not a folder or an archive ({', '.join(SUFFIXES)}), a .pkl or an .npz; unpack it to a folder, "
            "or save its arrays with: np.savez('NAME.npz', x_train=images, y_train=labels)"
        )
    return _walk_tar(path)


def _walk_tar(path: Path) -> Iterator[_Member]:
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        limit = _BASE_ALLOWANCE + (MAX_RATIO if gzipped else 1) * path.stat().st_size
        stream = _BoundedStream(gzip.GzipFile(fileobj=file) if gzipped else file, limit, path)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for info in tar:
                name = _safe_name(path, info.name)
                if info.isdir():
                    if name:
                        yield _Member(name + "/")
                    continue
                if not info.isreg() or info.issparse():
                    kind = "a link" if info.islnk() or info.issym() else "a device, a pipe or a sparse file"
                    raise UserError(f"{path}: '{info.name}' is {kind}; create the archive from regular files")
                _require_size(path, name, info.size)
                yield _Member(name, partial(_extract, tar, info))
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
            raise _decompression_bomb(self._path)
        self.tail = (self.tail + data[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        return len(data)


def _walk_zip(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        # zipfile never reads more of a member than its declared size, so the sum bounds the total.
        if sum(info.file_size for info in infos) > _BASE_ALLOWANCE + MAX_RATIO * path.stat().st_size:
            raise _decompression_bomb(path)
        for info in infos:
            stored = _zip_name(path, info)
            name = _safe_name(path, stored)
            if stored.endswith(("/", "\\")):  # is_dir() knows no backslashes, which some programs on Windows write
                if name:
                    yield _Member(name + "/")
                continue
            if info.flag_bits & _ENCRYPTED:
                raise UserError(f"{path} is encrypted; extract it with its password, and use the folder")
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise UserError(f"{path}: '{name}' is a link or a device; create the archive from regular files")
            if path.suffix.lower() == ".npz":
                _require_memory(path, name, info.file_size)
            else:
                _require_size(path, name, info.file_size)
            yield _Member(name, partial(archive.read, info), is_guessed=_is_guessed(info))


def _is_guessed(info: zipfile.ZipInfo) -> bool:
    """Whether zipfile decoded a name as code page 437 for want of anything better."""
    if info.flag_bits & _UTF8 or info.filename.isascii():
        return False
    try:
        info.filename.encode("cp437").decode()
    except UnicodeError:
        return True
    return False  # macOS writes UTF-8 without the flag that says so


def _zip_name(path: Path, info: zipfile.ZipInfo) -> str:
    """Return the name of a zip member.

    Raises:
        UserError: it is in the encoding of another language, as Windows writes Chinese names, and would be scrambled.
    """
    name = info.filename
    if _is_guessed(info):
        # Code page 437 also has Greek letters, mathematical signs and box drawings, which are not in Western names. The
        # second byte of a Japanese letter may be a backslash.
        if "\\" in name or not all(map(_is_western, name)):
            raise UserError(
                f"{path}: the member name '{name}' is in an encoding that the archive does not name; "
                f"{_way_to_unpack(path)}"
            )
        return name
    return name if info.flag_bits & _UTF8 else name.encode("cp437").decode()


def _is_western(letter: str) -> bool:
    return letter.isascii() or letter in "ªº¿¡" or unicodedata.name(letter).startswith("LATIN")


def _safe_name(path: Path, name: str) -> str:
    """Return ``name`` without ``./``; raise UserError if it leads out of the folder or is not printable."""
    parts = re.split(r"[/\\]", name)
    if not name or not all(map(_is_harmless, name.removesuffix("\r") if _is_of_system(name) else name)):
        raise UserError(f"{path}: the member name {name!a} is not printable; rename it and create the archive again")
    if parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise UserError(
            f"{path}: the member name '{name}' leads out of the folder; create the archive again without it"
        )
    return "/".join(part for part in parts if part not in ("", "."))


def _is_harmless(character: str) -> bool:
    """Whether a character is text: printable, a space of any width, or what joins or separates letters and emoji."""
    return character.isprintable() or unicodedata.category(character) == "Zs" or character in "\u200c\u200d"


def _require_size(path: Path, name: str, size: int) -> None:
    if not 0 <= size <= MAX_MEMBER:
        raise UserError(f"{path}: '{name}' has {size:,} bytes; the limit is {MAX_MEMBER:,}")


def _require_memory(path: Path, name: str, size: int) -> None:
    """Refuse an array that does not fit in memory twice: as a member, and as the images made from it."""
    free = psutil.virtual_memory().available
    if not 0 <= size <= min(MAX_ARRAY, max(free // 2, MAX_MEMBER)):
        raise UserError(
            f"{path}: '{name}' has {size:,} bytes, and {free / 2**30:.1f} GiB of memory are free; store smaller "
            "images, or a folder of image files, CLASS/FILE.png"
        )


def _decompression_bomb(path: Path) -> UserError:
    return UserError(
        f"{path} expands to more than {MAX_RATIO} times its size; unpack it, check its content, and pack the folder"
    )
