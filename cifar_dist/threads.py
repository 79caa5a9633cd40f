"""CPU threads: how many a process has, and that those which wait leave their core to others."""

from __future__ import annotations

import os

from cifar_dist.world import local_processes

_SPIN = "1000"  # turns, some microseconds; libgomp's own are some milliseconds


def wait_briefly() -> None:
    """Have OpenMP threads that wait for each other go to sleep soon. To be called before torch is loaded.

    Waiting, they spin on their core by default. Where another process needs it (a second run, a data loader, a
    neighbour on a shared node), all then wait for a thread that does not get to run: small networks train fifty
    times slower. What the user has set stays. See ``benchmarks/neighbour.py``.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPIN


def share_cores(threads: int) -> None:
    """Give this process ``threads`` threads; 0 for its share of the cores that this machine's processes may use."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or max(1, cores // local_processes())
    os.environ["OMP_NUM_THREADS"] = str(threads)  # or Accelerate counts for itself, and warns
    torch.set_num_threads(threads)
