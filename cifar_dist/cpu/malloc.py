"""Configure malloc to keep memory that one training step frees for the next step."""

from __future__ import annotations

import ctypes
import os

# mallopt(3), malloc.h of the GNU C library
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Make the allocator keep freed memory; return whether it does.

    The GNU C library returns freed blocks above 32 MiB, the size of activations, to the system at once, which then
    zeroes new pages in the next step: up to a sixth of the CPU time. The user's own malloc settings take precedence.
    Measured by ``benchmarks/memory.py``.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
    return all(mallopt(key, value) == 1 for key, value in wanted)
