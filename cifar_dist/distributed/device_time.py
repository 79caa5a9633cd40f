"""Time work on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def time_on(device: torch.device, work: Callable[[], object], calls: int = 1) -> float:
    """Return the mean seconds of several calls of ``work``, including all that they launch on the device."""
    _synchronise(device)
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    _synchronise(device)
    return (time.perf_counter() - begin) / calls


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
