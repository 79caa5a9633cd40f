"""How much memory is free, and whether images fit in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from cifar_dist.errors import UserError


class _Cgroups(NamedTuple):
    """Where a version of Linux control groups says how much memory a group of processes may use, and uses."""

    root: Path
    limit: str
    usage: str
    of_cache: tuple[str, ...]  # keys of memory.stat: memory that Linux takes back when a process needs it


_PROCESS: Final = Path("/proc/self/cgroup")
_VERSION_2: Final = _Cgroups(Path("/sys/fs/cgroup"), "memory.max", "memory.current", ("active_file", "inactive_file"))
_VERSION_1: Final = _Cgroups(
    Path("/sys/fs/cgroup/memory"),
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def free_memory() -> int:
    """Return the bytes that are free on this machine, or in the container or Slurm job, if it has less."""
    return min([int(psutil.virtual_memory().available), *_free_in_groups()])


def require_memory_for_images(where: str, count: int, shape: Sequence[int], remedy: str, *, copies: int = 1) -> None:
    """Refuse images that do not fit in the free memory.

    Args:
        where: prefix of the message.
        count: of the images.
        shape: height, width and channels of each, uint8.
        remedy: what to do.
        copies: processes of this machine that each hold all of them.

    Raises:
        UserError: they do not fit.
    """
    needed, free = copies * count * math.prod(shape), free_memory()
    if needed > free:
        each = f" in each of {copies} processes" if copies > 1 else ""
        raise UserError(
            f"{where}: {count:,} images of {shape[1]}x{shape[0]}{each} require {needed / 2**30:.1f} GiB of memory, but "
            f"only {free / 2**30:.1f} GiB are free; {remedy}"
        )


def _free_in_groups() -> Iterator[int]:
    """Yield what is free in each control group of this process that has a limit; a group is in those above it."""
    try:
        lines = [line.split(":", 2) for line in _PROCESS.read_text().splitlines()]
    except OSError:  # not Linux
        return
    for number, controllers, path in lines:
        if number != "0" and "memory" not in controllers.split(","):
            continue
        version = _VERSION_2 if number == "0" else _VERSION_1
        group = version.root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(version.root):
                yield from _free_in_group(folder, version)


def _free_in_group(folder: Path, version: _Cgroups) -> Iterator[int]:
    try:
        limit, usage = (int((folder / name).read_text()) for name in (version.limit, version.usage))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cache = sum(int(stat[key]) for key in version.of_cache)
    except (OSError, ValueError, KeyError):  # no such file, or "max"
        return
    yield max(0, limit - usage + cache)
