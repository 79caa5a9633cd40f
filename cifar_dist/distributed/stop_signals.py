"""Signals that ask a process to stop. The handler sets a flag, which the loop polls, and acknowledges a Ctrl-C.

Slurm and a terminal send them to all processes of a job, so the processes that a rank has started block them: a
compiler that a signal kills would fail the step that is to be finished.

TERM, INT, USR1 and USR2 mean: finish the step, save, exit with 75 (please requeue). A second INT ends the process at
once. URG is an INT that the launcher forwards and has acknowledged; a process that does not listen yet ignores it.
:mod:`cifar_dist.distributed.agreement` makes all ranks stop after the same step.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Any, Final

from cifar_dist.exit_codes import EXIT_REQUEUE
from cifar_dist.launch.launched import is_main_process
from cifar_dist.launch.signal_queue import MACHINE_JOINS, Handler
from cifar_dist.terminal import screen
from cifar_dist.terminal.notice import notice

INTERRUPT = "Ctrl-C"
JOINED = "a machine that joins"
SIGNAL_NAMES: Final = {
    MACHINE_JOINS: JOINED,
    signal.SIGUSR2: "USR2",
    signal.SIGUSR1: "USR1",
    signal.SIGTERM: "TERM",
    signal.SIGINT: INTERRUPT,
    signal.SIGURG: INTERRUPT,
}
"""Of the signals that ask to stop; where ranks received different ones, the last of them is the cause for all."""

_ANSWER_SECONDS = 10.0  # in which ranks that start together begin to exchange, and then stop together


class StopSignals:
    """A context manager that listens for requests to stop, and keeps them from processes that are started inside.

    Attributes:
        received: the first request, as ``Ctrl-C`` or the name of its signal; empty before it.
    """

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[int, Handler] = {}
        self._exit = ExitStack()

    def __enter__(self) -> StopSignals:
        for number in SIGNAL_NAMES:
            self._before[number] = signal.signal(number, self._handle)
        self._exit.enter_context(_kept_from_children())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def ending_waits(self, *, at_once: bool = False) -> Iterator[None]:
        """Inside, a request to stop ends the process with exit code 75, unless the block ends within ten seconds.

        A handler does not run while the main thread waits inside a library, as for a rank that has failed meanwhile.
        Another machine that joins asks again and again, and later kills.

        Args:
            at_once: do not wait for the block to end, of which nothing would be kept.
        """
        if not self._before:
            yield
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        has_ended = threading.Event()
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        patience = 0.0 if at_once else _ANSWER_SECONDS
        threading.Thread(target=self._end_when_asked, args=(reader, has_ended, patience), daemon=True).start()
        try:
            yield
        finally:
            has_ended.set()
            signal.set_wakeup_fd(before)
            os.close(writer)

    def _end_when_asked(self, reader: int, has_ended: threading.Event, patience: float) -> None:
        cause = self.received
        with open(reader, "rb", buffering=0) as signals:
            while cause in ("", JOINED) and (number := signals.read(1)):
                cause = SIGNAL_NAMES.get(signal.Signals(number[0]), "")
            if cause not in ("", JOINED) and not has_ended.wait(patience):
                if is_main_process():
                    notice(f"stopped by {cause}")
                os._exit(EXIT_REQUEUE)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in (signal.SIGINT, signal.SIGURG):
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # so that a second one ends even a process that is stuck
            if not self.received and is_main_process():  # at once, because a step may take long
                if number == signal.SIGINT and screen.is_in_foreground():
                    screen.say_above_bars(screen.STOPPING)
                else:  # a process above has said it
                    screen.let_line_pass()
        self.received = self.received or SIGNAL_NAMES[signal.Signals(number)]


@contextmanager
def _kept_from_children() -> Iterator[None]:
    """Have processes that :mod:`subprocess` starts inside block the signals, as do those that they start.

    A new program resets signals that are handled, and not those that are blocked.
    """
    start = subprocess.Popen.__init__

    def start_blocking(*arguments: Any, **options: Any) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNAL_NAMES)
        try:
            start(*arguments, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    subprocess.Popen.__init__ = start_blocking  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]
