"""Symbolic links, which not every file system has."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from cifar_dist.files.folders import hide
from cifar_dist.files.temporary import temporary_of

_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # exFAT, CIFS, FUSE


def link_atomic(link: Path, target: str) -> None:
    """Point the symbolic link ``link`` at ``target``, a name in the same folder, replacing what ``link`` was.

    Where the file system has no symbolic links, nothing has the name ``link`` afterwards.
    """
    temporary = temporary_of(link)
    is_link = _symlink(temporary, target)
    if link.is_dir() and not link.is_symlink():  # the run was copied by a tool that follows links
        hide(link)
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
