"""Files and folders that appear under their name complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from cifar_dist.files.folders import free_name
from cifar_dist.files.temporary import is_temporary_of, replaced_of, temporary_of


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk.

    A file system that cannot flush a folder, as those of VirtualBox's shared folders, is no reason to fail.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


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


def copy_atomic(source: Path, target: Path) -> None:
    """Copy a file atomically. If the disk is full, the error names the target, not the source as shutil's does."""
    write_atomic(target, source.read_bytes())


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
            old = target.rename(free_name(replaced_of(target)))
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


def _copy_permissions(source: Path, target: Path) -> None:
    """Give a folder the permissions, owner and group of another one; it remains writable for its owner."""
    status = source.stat()
    with contextlib.suppress(PermissionError):  # only root may give a folder to another user
        os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode) | stat.S_IRWXU)


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
