"""Atomic file operations: a file or folder appears under its name complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

CHECKOUT: Final = Path(__file__).parents[1]
"""The folder of this package, which has ``launch/``, ``shards/`` and ``slurm/`` beside it."""

_OPEN_FILES: Final = (Path("/proc/self/fd"), Path("/dev/fd"))  # of this process; the second where there is no /proc
_TOKEN: Final = secrets.token_hex(4)  # containers that share a file system number their processes alike
_TEMPORARY: Final = re.compile(r"\.(.+)\.([0-9]{1,9})(?:-[0-9a-f]{8})?\.tmp", re.DOTALL)  # name, and writing process
_SUMS: Final = "SHA256SUMS"
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # exFAT, CIFS, FUSE


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_of(path: Path) -> Path:
    """Return the path at which this process, and no other one on any machine, writes ``path`` until it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_TOKEN}.tmp")


def is_temporary_of(leftover: Path, path: Path) -> bool:
    """Whether a process, this one or another, wrote ``path`` at ``leftover``."""
    found = _TEMPORARY.fullmatch(leftover.name)
    return found is not None and found[1] == path.name


def is_replaced_of(leftover: Path, path: Path) -> bool:
    """Whether a folder is the one that was at ``path`` until a :func:`folder_atomic` replaced it, which was killed."""
    return re.fullmatch(re.escape(_replaced_of(path).name) + r"(-\d+)?", leftover.name) is not None


def _replaced_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.old.tmp")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file atomically (text as UTF-8): temporary name, fsync, rename."""
    temporary = temporary_of(path)
    try:
        with naming(path):
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            fsync(temporary)
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # of a read-only disk; the error under way names the file
            temporary.unlink(missing_ok=True)
    fsync(path.parent)


def write_output(path: Path, content: str | bytes) -> None:
    """Write what a user wants in ``path`` (text as UTF-8): a file atomically, through a link; a device or a pipe as is.

    ``/dev/stdout`` is this process's output wherever that leads: replacing the file behind it would lose what others
    have written there, such as the log of a job. Its reader may end before it has read all, as ``head`` does.
    """
    data = content.encode() if isinstance(content, str) else content
    descriptor = find_descriptor(path)
    if descriptor is not None:
        sys.stdout.flush()
        may_end = [BrokenPipeError] if descriptor == 1 else []
        with naming(path), contextlib.suppress(*may_end), open(descriptor, "wb", closefd=False) as file:
            file.write(data)
    elif path.exists() and not path.is_file() and not path.is_dir():
        with naming(path):
            path.write_bytes(data)
    else:
        write_atomic(path.resolve(), data)


def find_descriptor(path: Path) -> int | None:
    """Return the number of this process's open file that ``path`` names, as ``/dev/stdout`` does; None for others."""
    path = path.absolute()
    for _ in range(40 if path.exists() else 0):  # as many links as the system follows
        if path.name.isdecimal() and any(folder.is_dir() and folder.samefile(path.parent) for folder in _OPEN_FILES):
            return int(path.name)
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return None


def path_of(descriptor: int) -> Path | None:
    """Return the path that an open file has now; None if it was deleted, or the system cannot tell."""
    for folder in _OPEN_FILES:
        with contextlib.suppress(OSError):
            path = (folder / str(descriptor)).readlink()
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return path
    return None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in an OSError that names no file, as that of a full disk does, or a temporary name of ``path``."""
    try:
        yield
    except OSError as error:
        named = Path(str(error.filename))
        if error.filename is None or any(is_temporary_of(one, path) for one in (named, *named.parents)):
            error.filename = str(path)
            del error.filename2  # None would be printed as a second name
        raise


def copy_atomic(source: Path, target: Path) -> None:
    """Copy a file atomically. If the disk is full, the error names the target, not the source as shutil's does."""
    write_atomic(target, source.read_bytes())


def link_atomic(link: Path, target: str) -> None:
    """Point the symbolic link ``link`` at ``target``, a name in the same folder, replacing what ``link`` was.

    Where the file system has no symbolic links, nothing has the name ``link`` afterwards.
    """
    temporary = temporary_of(link)
    is_link = _symlink(temporary, target)
    if link.is_dir() and not link.is_symlink():  # the run was copied by a tool that follows links
        link.rename(free_name(link.with_name(f".{link.name}.tmp")))
    if is_link:
        temporary.replace(link)


def has_links(folder: Path) -> bool:
    """Whether the file system of ``folder`` has symbolic links, by a trial.

    Raises:
        OSError: the folder cannot be written.
    """
    trial = temporary_of(folder / "link")
    try:
        return _symlink(trial, folder.name)
    finally:
        trial.unlink(missing_ok=True)


def _symlink(path: Path, target: str) -> bool:
    """Create a symbolic link, replacing one of that name; return whether the file system has any."""
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


@contextlib.contextmanager
def folder_atomic(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Create a folder that receives its name when the block succeeds; after an error nothing of it remains.

    A folder that replaces another one keeps its permissions, owner and group. Files in it get the permissions of the
    folder, which come from the umask otherwise, whichever library wrote them.

    Args:
        target: path of the folder; through a link, that of the folder behind it.
        replace: replace an existing folder, which is deleted only after the new one is complete.
    """
    target = target.resolve()  # the new folder must be on the file system of the old one; and "." has no name
    temporary = temporary_of(target)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if replace and target.exists():
            _copy_permissions(target, temporary)
        with naming(target):
            yield temporary
        mode = temporary.stat().st_mode & 0o666  # safetensors writes 0600 whatever the umask
        for path in [*temporary.rglob("*"), temporary]:
            if path.is_symlink():
                continue
            if path.is_file():
                path.chmod(mode)
            fsync(path)
        old = None
        if replace and target.exists():
            old = target.rename(free_name(_replaced_of(target)))
        try:
            temporary.rename(target)
        except BaseException:
            if old is not None:
                old.rename(target)
            raise
        fsync(target.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_numbered(target: Path, write: Callable[[Path], None]) -> Path:
    """Create a folder as :func:`folder_atomic` does, under the first free name; return its path.

    Args:
        target: path of the folder, see :func:`free_name`.
        write: writes into the folder whose path it is given; again if another process has taken the name meanwhile.
    """
    while True:
        numbered = free_name(target)
        try:
            with folder_atomic(numbered) as folder:
                write(folder)
            return numbered
        except OSError:
            if not numbered.exists():
                raise


def _copy_permissions(source: Path, target: Path) -> None:
    """Give a folder the permissions, owner and group of another one; it remains writable for its owner."""
    status = source.stat()
    with contextlib.suppress(PermissionError):  # only root may give a folder to another user
        os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode) | stat.S_IRWXU)


def complete(folder: Path) -> list[Path]:
    """List the entries of ``folder`` by name, without hidden ones, which are incomplete; empty if it does not exist.

    Every reader of a folder that this program writes begins here: a pattern such as ``*`` would match an incomplete
    entry, and :meth:`pathlib.Path.glob` returns nothing where a folder cannot be read.

    Raises:
        OSError: the folder exists and cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


def exists(path: Path) -> bool:
    """Whether a file or folder exists, following links.

    Raises:
        OSError: that cannot be determined. :meth:`pathlib.Path.is_file` and others would answer no.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_writable(folder: Path) -> bool:
    """Whether this process may create files in an existing folder."""
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def is_utf8(name: str) -> bool:
    """Whether the name of a file is UTF-8. Python accepts any bytes as a name, but no text file can hold this one."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Load a file of safetensors, whose library takes no path that is not UTF-8.

    Raises:
        SafetensorError: the file is damaged or not of this format.
        OSError: it cannot be read.
    """
    from safetensors.torch import load, load_file

    tensors: dict[str, Tensor] = load_file(path) if is_utf8(str(path)) else load(path.read_bytes())
    return tensors


def leftovers(folder: Path) -> list[Path]:
    """List incomplete files and folders in ``folder``: left by a killed process, or being written right now."""
    return sorted(folder.glob(".*.tmp*"))


def abandoned(folder: Path) -> list[Path]:
    """List the :func:`leftovers` of processes that have ended, for a caller that is not writing in ``folder``.

    A temporary name with the number of this process is of an earlier one, as in containers that number alike.
    """
    return [path for path in leftovers(folder) if _writer(path) == os.getpid() or not is_being_written(path)]


def is_being_written(leftover: Path) -> bool:
    """Whether the process whose number is in a temporary name is alive.

    Those of other machines count as ended: their numbers mean nothing here, and what they left would remain for ever.
    """
    import psutil

    number = _writer(leftover)
    if number is None:
        return False
    try:
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _writer(leftover: Path) -> int | None:
    found = _TEMPORARY.fullmatch(leftover.name)
    return int(found[2]) if found else None


def hide(path: Path) -> Path:
    """Rename a folder so that nothing takes it for a complete one; return its path. Links and hidden ones stay.

    Raises:
        OSError: it cannot be renamed.
    """
    path = path.absolute()  # "." has no name
    if path.name.startswith(".") or path.is_symlink():
        return path
    return path.rename(free_name(path.with_name(f".{path.name}.tmp")))


def discard(path: Path) -> OSError | None:
    """Delete a file, or a folder with its content. An interrupted deletion leaves nothing that looks complete.

    Returns:
        The first error of a folder's content, with its path; the rest is deleted, and what is left has a hidden name.
        None: all is deleted.

    Raises:
        OSError: nothing could be deleted.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return None
    doomed = hide(path)
    errors: list[OSError] = []

    def note(_: object, name: str, error: BaseException) -> None:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            error.filename = name  # which rmtree leaves relative
            errors.append(error)

    if sys.version_info >= (3, 12):
        shutil.rmtree(doomed, onexc=note)
    else:
        shutil.rmtree(doomed, onerror=lambda function, name, raised: note(function, name, raised[1]))
    return next(iter(errors), None)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty where it is missing or damaged: a table shows what exists."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS``, the checksums of the files in ``folder``, as the program sha256sum reads it."""
    lines = [f"{sha256(path)}  {path.name}\n" for path in complete(folder) if path.is_file() and path.name != _SUMS]
    (folder / _SUMS).write_text("".join(lines), encoding="utf-8")


def changed_files(folder: Path) -> list[str]:
    """List the files of a ``SHA256SUMS`` that are missing or have changed; none if the folder has no such list."""
    if not exists(folder / _SUMS):
        return []
    saved = [line.split("  ", 1) for line in (folder / _SUMS).read_text(errors="replace").splitlines()]
    if not saved or any(len(pair) != 2 or "/" in pair[1] for pair in saved):
        return [_SUMS]
    return [name for checksum, name in saved if not (folder / name).is_file() or sha256(folder / name) != checksum]


def free_name(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    candidate, number = path, 1
    while candidate.exists() or candidate.is_symlink():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
