"""Ctrl-Z for a process whose children are in sessions of their own, which the terminal's signals do not reach."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import psutil

from cifar_dist.launch.signal_queue import send


@contextlib.contextmanager
def suspended_together() -> Iterator[None]:
    """Inside, SIGTSTP stops all processes below this one before itself, and SIGCONT continues them.

    Where SIGTSTP is ignored or handled already, nothing changes. Use it in the main thread.
    """
    if signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTSTP, _suspend)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)


def _suspend(number: int, frame: FrameType | None) -> None:
    this = psutil.Process()
    stopped: list[psutil.Process] = []
    while fresh := [process for process in this.children(recursive=True) if process not in stopped]:
        send(fresh, signal.SIGSTOP)
        stopped += fresh
    os.kill(this.pid, signal.SIGSTOP)  # the shell sees it, and continues it with SIGCONT
    send(stopped, signal.SIGCONT)
