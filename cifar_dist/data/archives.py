"""Read the files of a folder or an archive, one at a time, into memory. Nothing is extracted to disk.

Archives are not trusted: a name that leads out of the folder, a link, a device or a sparse file is refused by name,
and so is an archive that expands far beyond its size.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.data.archive_member import Member, is_of_system, limited
from cifar_dist.data.archive_tar import walk_tar
from cifar_dist.data.archive_zip import walk_zip, way_to_unpack
from cifar_dist.data.source_suffixes import ARCHIVE_SUFFIXES, FILE_ENDINGS, NPZ_SUFFIX
from cifar_dist.errors import UserError, quoted
from cifar_dist.files.reading import is_utf8, require_utf8_locale
from cifar_dist.formatting import counted, list_some
from cifar_dist.terminal.progress import progress

MAX_MEMBERS = 10_000_000

_MAX_DEPTH = 32
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


def refuse_archives_in(folder: Path, names: Sequence[str], use: Callable[[str], str]) -> None:
    """Refuse a folder that has no images but archives of them, one of which is to be named itself.

    Args:
        folder: the folder.
        names: of its files.
        use: the command, of the quoted path of an archive.

    Raises:
        UserError: one of the files is such an archive. A bare ``.tar`` may be of a WebDataset, and is none.
    """
    archives = [name for name in names if name.lower().endswith(ARCHIVE_SUFFIXES) and not name.endswith(".tar")]
    if archives and folder.is_dir():
        command = use(quoted(folder / archives[0]))
        raise UserError(f"{folder} has no images, but {list_some(archives)}; use the archive itself: {command}")


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
        f"{path} does not name the encoding of {counted(len(listing.guessed), 'name')}, read as "
        f"'{listing.guessed[0]}'; if that is scrambled, {way_to_unpack(path)}"
    ]


def require_utf8_name(path: Path) -> None:
    """Raise UserError if the last part of a path, after which a dataset is named, is not UTF-8."""
    _require_utf8(path.resolve().name, f"the name of '{path}'")


def _require_utf8(name: str, what: str) -> None:
    require_utf8_locale(name, what)
    if not is_utf8(name):
        raise UserError(f"{what} is not UTF-8; rename it")


def hidden_names(folder: Path) -> list[str]:
    """List the files of a folder as :attr:`Listing.hidden` has them. Links are not followed."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    files = [file.relative_to(folder).as_posix() for file in found]
    return sorted(name for name in files if _is_hidden(name) and not is_of_system(name))


def read_members(path: Path, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the wanted files, in stored order; raises like :func:`list_members`."""
    with _raise_user_errors(path):
        for member in _walk(path):
            if member.name in wanted:
                yield member.name, member.read()


def read_image_files(path: Path, names: Sequence[str], *, show: bool = True) -> Iterator[tuple[int, str, bytes]]:
    """Yield the files ``names`` of a folder or archive, in stored order, and show the progress.

    Returns:
        Position in ``names``, place for error messages, bytes.

    Raises:
        UserError: a file no longer exists, or as for :func:`list_members`.
    """
    left = {name: row for row, name in enumerate(names)}
    with progress(f"reading {path.resolve().name}", len(names), show=show) as advance:
        for name, data in read_members(path, left):
            advance(1)
            yield left.pop(name), f"{path}: '{name}'", data
    if left:
        raise UserError(f"{path} changed while it was being read; run the command again")


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


def _walk(path: Path, *, folders: bool = False) -> Iterator[Member]:
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
        if not is_of_system(member.name):
            yield member


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _walk_folder(root: Path, prefix: str = "", above: tuple[str, ...] = ()) -> Iterator[Member]:
    """Walk the folder ``root/prefix``; ``above`` are the real paths of the folders that contain it."""
    folder = root / prefix
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = prefix + entry.name
            if entry.name.startswith("."):
                continue
            _require_utf8(name, f"{root}: the name '{name}'")
            if entry.is_dir():
                if os.path.realpath(entry.path) in above:
                    raise UserError(f"{root}: '{name}' is a link to a folder that contains it; remove the link")
                if len(above) == _MAX_DEPTH:
                    raise UserError(f"{root}: '{name}' is more than {_MAX_DEPTH} folders deep; move it up")
                yield Member(name + "/")
                yield from _walk_folder(root, name + "/", above)
            elif entry.is_file():
                yield Member(name, limited(root, name, entry.stat().st_size, Path(entry.path).read_bytes))
            else:
                kind = "a link to a file that does not exist" if entry.is_symlink() else "a device, a pipe or a socket"
                raise UserError(f"{root}: '{name}' is {kind}; remove it")


def _walk_archive(path: Path) -> Iterator[Member]:
    if path.suffix.lower() in (".zip", NPZ_SUFFIX):  # numpy's format is a zip of arrays
        return walk_zip(path)
    if not path.name.lower().endswith(ARCHIVE_SUFFIXES):
        raise UserError(
            f"{path} is not a folder or a file that ends in {FILE_ENDINGS}; unpack it to a folder, or save its arrays "
            "with: np.savez('NAME.npz', x_train=images, y_train=labels)"
        )
    return walk_tar(path)
