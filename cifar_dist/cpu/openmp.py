"""OpenMP threads: how many this process uses, and how long they spin while waiting."""

from __future__ import annotations

import os

from cifar_dist.cpu.load import usable_cores

_SPIN_COUNT = "1000"  # iterations: microseconds, where libgomp's default takes milliseconds


def shorten_openmp_spin() -> None:
    """Let waiting OpenMP threads sleep after microseconds. Call it before torch is imported.

    By default they spin on their core. If another process needs that core (a second run, a data loader, another job
    on a shared node), all threads wait for one that is not scheduled, and small networks train up to fifty times
    slower. A value that the user has set takes precedence. Measured by ``benchmarks/neighbour.py``.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def share_cores(local_processes: int) -> int:
    """Return how many threads a process uses where ``local_processes`` divide the machine's cores equally."""
    return max(1, usable_cores() // local_processes)


def use_threads(threads: int) -> None:
    """Use so many threads in this process, for all libraries."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)  # otherwise Accelerate sets its own count and warns
    torch.set_num_threads(threads)
