"""The entries of folders: listed, hidden, deleted, and their free names."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def list_complete(folder: Path) -> list[Path]:
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


def is_mount_point(folder: Path) -> bool:
    """Whether a file system begins at a folder, or one is mounted there from elsewhere on the same disk.

    :func:`os.path.ismount` compares device numbers, so it misses the latter: a container's ``-v`` may be one.
    """
    import psutil

    resolved = folder.resolve()
    mounted = {partition.mountpoint for partition in psutil.disk_partitions(all=True)}
    return os.path.ismount(resolved) or str(resolved) in mounted


def free_name(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    candidate, number = path, 1
    while candidate.exists() or candidate.is_symlink():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


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
