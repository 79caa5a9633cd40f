"""Where the time of a run goes: the phase of training to which each moment belongs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from cifar_dist.tracking.usage import Phase

_MILLISECONDS: Final = 1e-3


class PhaseClock:
    """Adds up the seconds of each phase. At every moment one phase is under way, and at first ``rest``.

    The seconds of a GPU are those of its stream: a change of phase is an event in it, which is read once it has
    passed, so neither host nor device waits.

    Args:
        device: what computes.

    Attributes:
        names_ranges: whether a running torch profiler shows the phases by name.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._seconds: dict[Phase, float] = {}
        self._changes: deque[tuple[Phase, float | torch.cuda.Event]] = deque()  # the last one is under way
        self.names_ranges = False
        self.begin("rest")

    def begin(self, phase: Phase) -> Phase:
        """End the phase that is under way, and return it."""
        before = self._changes[-1][0] if self._changes else phase
        self._changes.append((phase, self._now()))
        return before

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """``phase`` inside, and the phase that was under way after."""
        before = self.begin(phase)
        try:
            if self.names_ranges:
                with torch.profiler.record_function(phase):
                    yield
            else:
                yield
        finally:
            self.begin(before)

    def read(self) -> None:
        """Add up what the device has passed. Called now and then, it bounds the events that are kept."""
        while len(self._changes) > 1 and _has_passed(self._changes[1][1]):
            phase, began = self._changes.popleft()
            self._seconds[phase] = self._seconds.get(phase, 0.0) + _seconds_between(began, self._changes[0][1])

    def take(self) -> dict[Phase, float]:
        """Return the seconds of each phase since the last call, without what the device has not passed yet."""
        self.begin(self._changes[-1][0])
        self.read()
        taken, self._seconds = self._seconds, {}
        return taken

    def _now(self) -> float | torch.cuda.Event:
        if not self._is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _has_passed(moment: float | torch.cuda.Event) -> bool:
    return isinstance(moment, float) or moment.query()


def _seconds_between(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert not isinstance(begin, float)
    assert not isinstance(end, float)
    return float(begin.elapsed_time(end)) * _MILLISECONDS
