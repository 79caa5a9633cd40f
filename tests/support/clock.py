"""Clocks of which no test depends on how busy the machine is."""

from __future__ import annotations

import threading
import time
from functools import partial

from support.running import wait_until


class Clock:
    """Stands in for ``time.perf_counter``: seconds pass when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class WatchdogClock:
    """Stands in for the watchdog's ``time``: seconds pass when the test says so, and the watchdog sees them pass.

    Args:
        timeout: of the watchdog.
    """

    sleep = staticmethod(time.sleep)

    def __init__(self, timeout: float) -> None:
        self._stride = 3 * min(1.0, timeout / 8)  # of a longer one, the watchdog believes that its process was stopped
        self._now, self._looks, self._lock = 0.0, 0, threading.Lock()

    @classmethod
    def install(cls, timeout: float) -> WatchdogClock:
        """Give the clock to the watchdog of this process, unless it has one; return it."""
        from cifar_dist.distributed import watchdog

        clock: object = vars(watchdog)["time"]
        if not isinstance(clock, cls):
            vars(watchdog)["time"] = clock = cls(timeout)
        return clock

    def monotonic(self) -> float:
        with self._lock:
            if threading.current_thread().name == "watchdog":
                self._looks += 1
            else:
                self._now += 0.01  # what a step takes
            return self._now

    def let_pass(self, seconds: float) -> None:
        """Return once the watchdog has seen so many seconds pass."""
        while seconds > 0:
            with self._lock:
                self._now += min(seconds, self._stride)
                wanted = self._looks + 2  # it looks at the clock twice each time
            wait_until(partial(self._has_looked, wanted), [])
            seconds -= self._stride

    def _has_looked(self, times: int) -> bool:
        return self._looks >= times
