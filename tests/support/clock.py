"""A clock of which no test depends on how busy the machine is."""

from __future__ import annotations


class Clock:
    """Stands in for ``time.perf_counter``: seconds pass when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now
