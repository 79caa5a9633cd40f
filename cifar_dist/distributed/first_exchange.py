"""The first exchange of a job, which no watchdog sees yet: NCCL hangs where GPUs cannot reach each other."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cifar_dist.exit_codes import EXIT_FAILED
from cifar_dist.launch.launched import is_first_of_machine, launched_processes
from cifar_dist.terminal.notice import notice

_PATIENCE: Final = 30.0  # seconds; on hundreds of GPUs the first exchange takes most of them
REMEDIES: Final = {
    "NCCL": "GPUs of a machine that cannot reach each other directly wait so, as in virtual machines or with IOMMU or "
    "ACS: set NCCL_P2P_DISABLE=1; on several machines NCCL_SOCKET_IFNAME names the network between them, and "
    "NCCL_DEBUG=INFO shows more",
    "gloo": "on several machines GLOO_SOCKET_IFNAME names the network between them",
}
"""What helps where an exchange hangs, by backend."""


@contextmanager
def first_exchange(timeout: float, *, cpu: bool) -> Iterator[None]:
    """Say inside the block, once on each machine, that it takes long, and what helps; then end this process.

    Args:
        timeout: seconds after which the process ends, with exit code 1.
        cpu: whether the processes exchange over gloo, and not over NCCL.
    """
    if launched_processes() == 1:
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_watch, args=(ended, timeout, "gloo" if cpu else "NCCL"), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _watch(ended: threading.Event, timeout: float, backend: str) -> None:
    begin, patience = time.monotonic(), min(_PATIENCE, timeout / 2)
    what = f"the processes have joined, and their first exchange over {backend}"
    if ended.wait(patience):
        return
    if is_first_of_machine():
        notice(f"{what} has not ended for {patience:.0f} s; {REMEDIES[backend]}")
    if ended.wait(timeout - (time.monotonic() - begin)):
        return
    if is_first_of_machine():
        notice(f"gave up after {timeout:.0f} s (run.join_timeout): {what} has not ended; {REMEDIES[backend]}")
    os._exit(EXIT_FAILED)  # the main thread is inside the exchange
