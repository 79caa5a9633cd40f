"""A signal to one rank of a job that trains."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from gpu.bench import FailedError

SOME_STEPS = 6
"""Records of ``metrics.jsonl`` after which a run has certainly begun."""
_LAST_SECONDS = 60.0  # that a job may take to end, from the signal to one of its ranks


@dataclass
class SignalToRank:
    """Sends a signal to a rank of a run that has trained a few steps: ``until`` of :meth:`Bench.python`.

    Attributes:
        run: its folder.
        rank: receives the signal.
        number: of the signal.
        sent: when it was, on the monotonic clock; 0 before.
    """

    run: Path
    rank: int
    number: signal.Signals
    sent: float = 0.0

    def __call__(self, output: str) -> bool:
        """Send it once it is time to.

        Raises:
            FailedError: the rank has ended before, or the job still runs a minute after it.
        """
        if self.sent and time.monotonic() > self.sent + _LAST_SECONDS:
            raise FailedError(f"it still ran {_LAST_SECONDS:.0f} s after {self.number.name} to rank {self.rank}")
        if not self.sent and records(self.run) >= SOME_STEPS:
            os.kill(self._find_process(), self.number)
            self.sent = time.monotonic()
        return False

    def _find_process(self) -> int:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words, variables = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            except OSError:  # it has ended, or belongs to another user
                continue
            if self.run.name.encode() in words and f"RANK={self.rank}".encode() in variables:
                found.append(int(folder.name))
        if not found:
            raise FailedError(f"rank {self.rank} ended before {self.number.name} could be sent to it")
        return min(found)  # the others are its forks


def records(run: Path) -> int:
    """Count the records of a run so far."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0
