"""Say that slow libraries are loaded, so that no command is silent in its first second."""

from __future__ import annotations

from contextlib import AbstractContextManager

from cifar_dist.launch.launched import is_main_process
from cifar_dist.terminal.progress import waiting


def loading(what: str = "loading PyTorch") -> AbstractContextManager[None]:
    """Show this at a terminal while a verb imports what it needs."""
    return waiting(what, show=is_main_process())
