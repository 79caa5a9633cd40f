"""Processes that end with their parent, however it ended. On Linux; elsewhere these functions have no effect.

A launcher that is killed cannot end its ranks, which would train on and keep the run folder in use. So the kernel ends
them: prctl(2), ``PR_SET_PDEATHSIG`` and ``PR_SET_CHILD_SUBREAPER``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LAUNCHER = "CIFAR_DIST_LAUNCHER"  # in the environment of a rank: the process id of its launcher


def signal_on_parent_death(parent: int, number: int) -> None:
    """Have the kernel send this process ``number`` when the process ``parent``, its parent, ends or has ended."""
    if _prctl(_PR_SET_PDEATHSIG, number) and os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), number)


def signal_when_this_ends(number: int) -> Callable[[], None]:
    """Return the ``preexec_fn`` of a process that receives ``number`` when the thread that calls this ends."""
    return partial(signal_on_parent_death, os.getpid(), number)


def announce_launcher() -> None:
    """Let the ranks that this process will start find it with :func:`die_with_launcher`."""
    os.environ[_LAUNCHER] = str(os.getpid())


def die_with_launcher() -> None:
    """End this process, if it is a rank of ``cifar-dist launch``, when its launcher ends or has ended."""
    launcher = os.environ.pop(_LAUNCHER, "")  # a command that this process starts has another parent
    if launcher:
        signal_on_parent_death(int(launcher), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, instead of the process with number 1."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> bool:
    return sys.platform == "linux" and bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
