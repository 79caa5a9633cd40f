"""The files that this process has open, by number and by path."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

_OPEN_FILES: Final = (Path("/proc/self/fd"), Path("/dev/fd"))  # of this process; the second where there is no /proc


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
