"""What may ask a run to stop: a signal, a ``STOP`` file in its folder, or its limit on wall time.

Every process knows of its own requests only; :mod:`cifar_dist.distributed.agreement` makes all ranks stop after the
same step, for the same cause.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

from cifar_dist.distributed.stop_signals import JOINED, SIGNAL_NAMES, StopSignals

STOP_FILE_SECONDS: Final = 5.0  # between two checks for the file, which may be on a network file system

TIME_LIMIT: Final = "run.max_time"
SHORT_TIME_LIMIT: Final = f"{TIME_LIMIT}, too short for several steps; add --run.max_time 1h, or ask for a longer job"
STOP_FILE: Final = "the STOP file"
_CAUSES: Final = tuple(dict.fromkeys(["", JOINED, TIME_LIMIT, SHORT_TIME_LIMIT, STOP_FILE, *SIGNAL_NAMES.values()]))

_FEW_STEPS: Final = 3  # a limit that is reached before would stop the run again and again without any progress


class StopRequests:
    """The requests of one process.

    Args:
        signals: those that it received.
        file: whose existence asks to stop; one process checks it for all. None for no check. A folder asks nothing.
        deadline: time at which to stop, as of ``time.time()`` now, whatever the clock is set to later; None for none.
    """

    def __init__(self, signals: StopSignals, *, file: Path | None = None, deadline: float | None = None) -> None:
        self._signals, self._file = signals, file
        self._deadline = None if deadline is None else time.monotonic() + deadline - time.time()
        self._next_check = 0.0
        self._steps = 0
        self._found = ""

    def code(self) -> int:
        """Return the cause as a number, 0 for none; the maximum over all ranks is the cause for all.

        Called once after each step, and before each batch of an evaluation.
        """
        self._steps += 1
        return _CAUSES.index(self._signals.received or self._found or self._find())

    def _find(self) -> str:
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            self._found = TIME_LIMIT if self._steps > _FEW_STEPS else SHORT_TIME_LIMIT
        elif self._file is not None and now >= self._next_check:
            self._next_check = now + STOP_FILE_SECONDS
            with contextlib.suppress(OSError):  # of a file server that does not answer; it is asked again
                self._found = STOP_FILE if self._file.is_file() else ""
        return self._found


def cause_of(code: float) -> str:
    """Return the cause that a number stands for; empty for 0."""
    return _CAUSES[int(code)]
