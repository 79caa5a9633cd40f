"""Signals for a process that passes them on to others."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Final

import psutil

MACHINE_JOINS: Final = signal.SIGRTMIN
"""Sent to the ranks of an elastic job: save and stop, to start again together with a machine that joins."""

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None
"""What ``signal.signal`` accepts and returns."""


def send(processes: Iterable[psutil.Process], number: int) -> None:
    """Signal processes that may have ended."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            pass


class SignalQueue:
    """Receives signals from its creation on: the handler only records them, and a loop acts.

    Args:
        numbers: the signals; HUP is left alone where ``nohup`` has it ignored.

    Attributes:
        received: all, in order.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self.received: list[signal.Signals] = []
        self._seen = 0
        self._before: dict[signal.Signals, Handler] = {}
        for number in numbers:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def new(self) -> list[signal.Signals]:
        """Return the signals received since the last call."""
        fresh = self.received[self._seen :]
        self._seen += len(fresh)
        return fresh

    def close(self) -> None:
        """Give the signals back to who handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))
