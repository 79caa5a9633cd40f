"""Memory of a process that trains on a CPU: what a step frees is kept for the next step."""

from __future__ import annotations

import ctypes
import os

# mallopt(3), malloc.h of the GNU C library
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Have the allocator keep what is freed; returns whether it does.

    The GNU C library gives blocks above 32 MiB, as activations are, back to the system at once, which then fills pages
    with zeros for the next step: up to a sixth of a CPU's time. What the user has set stays. See
    ``benchmarks/memory.py``.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
    return all(mallopt(key, value) == 1 for key, value in wanted)
