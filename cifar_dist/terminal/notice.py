"""One line for the reader that is not a result: on stderr, above whatever the terminal's last line shows."""

from __future__ import annotations

import sys
from typing import TextIO

from cifar_dist.terminal.screen import ERASE_LINE, is_terminal


def notice(text: str) -> None:
    """Print ``text`` as said by this program, at once."""
    print_over(f"cifar-dist: {text}", sys.stderr)


def print_over(line: str, stream: TextIO) -> None:
    """Print a line in place of the last one of a terminal, which is unfinished or echoes a key such as ^C."""
    print(f"{ERASE_LINE if is_terminal(stream) else ''}{line}", file=stream, flush=True)
