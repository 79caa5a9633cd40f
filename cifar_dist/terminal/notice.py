"""Lines for the reader that are not results, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from cifar_dist.errors import printable
from cifar_dist.terminal.screen import ERASE_LINE, is_terminal


def notice(text: str) -> None:
    """Print ``text`` as said by this program, at once, above whatever the terminal's last line shows."""
    print_over(f"cifar-dist: {text}", sys.stderr)


def warn(text: str) -> None:
    """Print a warning, which may contain untrusted names."""
    print(f"warning: {printable(text)}", file=sys.stderr, flush=True)


def print_notes(notes: Iterable[str]) -> None:
    """Print notes, one line each, which may contain untrusted names."""
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr, flush=True)


def print_over(line: str, stream: TextIO) -> None:
    """Print a line in place of the last one of a terminal, which is unfinished or echoes a key such as ^C."""
    print(f"{ERASE_LINE if is_terminal(stream) else ''}{line}", file=stream, flush=True)
