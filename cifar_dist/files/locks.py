"""Locks on open files, which the system ends with the process that holds them, however that ends."""

from __future__ import annotations

import fcntl
from typing import IO


def try_lock(file: IO[str], *, shared: bool = False) -> bool:
    """Lock an open file until it is closed, without waiting; return whether no other process has locked it."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: train unguarded rather than not at all
    return True
