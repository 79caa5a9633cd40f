"""Temporary names: of what is being written, of what is being replaced, and of what killed processes left."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Final

_TOKEN: Final = secrets.token_hex(4)  # containers that share a file system number their processes alike
_TEMPORARY: Final = re.compile(r"\.(.+)\.([0-9]{1,9})(?:-[0-9a-f]{8})?\.tmp", re.DOTALL)  # name, and writing process


def temporary_of(path: Path) -> Path:
    """Return the path at which this process, and no other one on any machine, writes ``path`` until it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_TOKEN}.tmp")


def is_temporary_of(leftover: Path, path: Path) -> bool:
    """Whether a process, this one or another, wrote ``path`` at ``leftover``."""
    found = _TEMPORARY.fullmatch(leftover.name)
    return found is not None and found[1] == path.name


def replaced_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.old.tmp")


def is_replaced_of(leftover: Path, path: Path) -> bool:
    """Whether a folder is the one that was at ``path`` until a process that replaced it was killed."""
    return re.fullmatch(re.escape(replaced_of(path).name) + r"(-\d+)?", leftover.name) is not None


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
