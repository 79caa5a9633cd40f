"""The cores that a process may use, and how busy they are."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STAT: Final = Path("/proc/stat")
_QUOTAS: Final = (  # of a container, versions 2 and 1: files with microseconds of CPU time in a period
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)
_MOSTLY_FREE: Final = 0.25  # a core counts as free if others use at most so much of it


def usable_cores() -> int:
    """Count the cores of this process, by its affinity and the quota of its container; at least 1."""
    allowed = _allowed_cores()
    for files in _QUOTAS:
        try:
            quota, period = " ".join(file.read_text() for file in files).split()
            if int(quota) > 0:
                allowed = min(allowed, max(1, int(quota) // int(period)))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return allowed


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Load:
    """The load of this process's cores over an interval.

    Attributes:
        node: the machine.
        cores: usable ones.
        allowed: those of its affinity: more than usable ones where a container has a quota of its host's cores.
        busy: of the allowed cores, those that were busy on average, with whatever.
        own: of those, what this process used.
    """

    node: str
    cores: int
    allowed: int
    busy: float
    own: float


def threads_of_each(loads: list[Load]) -> int:
    """Return how many threads each process of a job should use, the same for all of them.

    A thread that shares its core with another program delays all the others at every operation, so cores that are
    busy with other programs are left to them.

    Args:
        loads: of every process of the job.
    """
    counts = []
    for node in {load.node for load in loads}:
        here = [load for load in loads if load.node == node]
        others = max(0.0, max(load.busy for load in here) - sum(load.own for load in here))
        free = min(max(load.cores for load in here), max(load.allowed for load in here) - others)
        counts.append(int(free + _MOSTLY_FREE) // len(here))
    return max(1, min(counts))


@dataclass(frozen=True)
class _Moment:
    wall: float
    busy: float
    own: float


_began: _Moment | None = None


def watch_load() -> None:
    """Begin to watch the cores. Called when a command begins; while it imports its libraries, the load shows."""
    global _began
    _began = _now()


def load_since() -> Load | None:
    """Return the load since :func:`watch_load`; None if it was not called, or the system does not say."""
    end = _now()
    if _began is None or end is None:
        return None
    wall = max(end.wall - _began.wall, 1e-3)
    busy, own = (end.busy - _began.busy) / wall, (end.own - _began.own) / wall
    return Load(platform.node(), usable_cores(), _allowed_cores(), busy, own)


def _now() -> _Moment | None:
    """Seconds of CPU time until now, of the cores of this process and of the process itself."""
    try:
        lines = _STAT.read_text().splitlines()
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = [list(map(int, line.split()[1:9])) for line in lines if line.split()[0] in mine]
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; what another virtual machine steals is busy, too.
    busy = sum(sum(core) - core[3] - core[4] for core in ticks) / os.sysconf("SC_CLK_TCK")
    return _Moment(time.monotonic(), busy, time.process_time())
