"""Say that slow libraries are loaded, so that no command is silent in its first second."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager

from cifar_dist.distributed.launch_checks import is_main_process
from cifar_dist.terminal.progress import waiting


def say_stopped(by: str) -> None:
    """Say that a verb that leaves nothing behind was stopped by a request."""
    if is_main_process():
        print(f"cifar-dist: stopped by {by or 'request'}", file=sys.stderr)


def loading(what: str = "loading PyTorch") -> AbstractContextManager[None]:
    """Show this at a terminal while a verb imports what it needs."""
    return waiting(what, show=is_main_process())
