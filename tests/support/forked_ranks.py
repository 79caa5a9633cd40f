"""The processes of a job as forks of one interpreter, which imports torch once for all of them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable, Container
from pathlib import Path

import torch._dynamo  # noqa: F401 - torch imports it with the first optimizer, in seconds: once, not in each fork
from accelerate.state import AcceleratorState

from support.running import free_port


def run(processes: int, work: Callable[[], None], *, codes: Container[int] = (0,)) -> None:
    """Call ``work`` once per rank, in real processes that find each other over gloo, and wait for all.

    Each must end with one of ``codes``.
    """
    _end_openmp_pool()
    port = free_port()
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, processes, port, work)) for rank in range(processes)]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(timeout=300)
        ended = [rank.exitcode for rank in ranks]
        assert all(code in codes for code in ended), f"exit codes of the ranks: {ended}"
    finally:
        for rank in ranks:
            rank.kill()


def _end_openmp_pool() -> None:
    """End the OpenMP threads that a test has left: forks do not have them, and would wait for them for ever."""
    memory = Path("/proc/self/maps").read_text().splitlines()
    if libgomp := next((line.split()[-1] for line in memory if "libgomp" in line), None):
        omp_pause_hard = 2
        failed = ctypes.CDLL(libgomp).omp_pause_resource_all(omp_pause_hard)
        assert not failed, "a parallel region is not over"


def _rank(rank: int, processes: int, port: int, work: Callable[[], None]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    AcceleratorState._reset_state(reset_partial_state=True)  # of an engine that this interpreter had before
    work()
    os._exit(0)  # as every command ends: left to the interpreter's exit, gloo aborts now and then
