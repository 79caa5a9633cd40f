"""Signals that ask a process to stop. The handler only sets a flag, which the loop polls at every step.

TERM, INT, USR1 and USR2 mean: finish the step, save, exit with 75 (please requeue). A second INT ends the process at
once.
:mod:`cifar_dist.distributed.agreement` makes all ranks stop after the same step.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

GRACE_SECONDS = 120  # between the signal and the end of a job's time: `#SBATCH --signal` of slurm/*.sbatch says it too

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """A context manager that listens for requests to stop.

    Attributes:
        received: name of the first signal received, or the empty string.
    """

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[int, signal.Handlers | int | None] = {}

    def __enter__(self) -> StopSignals:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # so that a second one ends even a process that is stuck
        self.received = self.received or signal.Signals(number).name
