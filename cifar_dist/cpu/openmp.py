"""OpenMP threads: how many this process has, and how long they spin while they wait."""

from __future__ import annotations

import os

_SPIN_COUNT = "1000"  # iterations, some microseconds; libgomp's default is some milliseconds


def shorten_openmp_spin() -> None:
    """Make OpenMP threads that wait for each other sleep after microseconds. Call it before torch is loaded.

    By default they spin on their core. Where another process needs that core (a second run, a data loader, another
    job on a shared node), all threads then wait for one that is not scheduled: small networks train fifty times
    slower. A value that the user has set stays. Measured by ``benchmarks/neighbour.py``.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def share_cores(threads: int, local_processes: int) -> None:
    """Give this process ``threads`` threads, or with 0 an equal share of the cores of ``local_processes`` processes."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or max(1, cores // local_processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # otherwise Accelerate sets its own count, with a warning
    torch.set_num_threads(threads)
