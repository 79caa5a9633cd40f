"""The terminal as it is now: its width, and a line that appears above the bars without waiting for them.

Nothing here is printed into a file or a pipe.
"""

from __future__ import annotations

import os
import re
import textwrap
from typing import TextIO

WIDEST = 79  # columns of a line, however wide the terminal: longer lines are hard to read
NARROWEST = 30
ROOM_FOR_KEYS = 3  # beside bars, whose line has the cursor: a key such as ^C is echoed there
ERASE_LINE = "\r\x1b[K"

STOPPING = "Ctrl-C: stopping; again ends it at once"

_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:%|[kMGT]?i?B|ms|s|min|h)(?:[\W]|$))")

_rows = 1  # that the bars occupy now; the cursor is at the end of the last one


def is_terminal(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that can move its cursor."""
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    except ValueError:  # closed
        return False


def columns(stream: TextIO, *, spare: int = 1) -> int:
    """Return the columns that a line may use in the terminal of ``stream`` at this moment, at most WIDEST.

    Args:
        stream: the terminal; WIDEST for a file or a pipe.
        spare: columns to leave free: one, because the last would wrap the cursor, or ROOM_FOR_KEYS.
    """
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        found = 0
    return max(NARROWEST, min(found - spare, WIDEST)) if found else WIDEST


def table_width(stream: TextIO) -> int | None:
    """Return the columns that a table may use in the terminal of ``stream``; None for a file or a pipe."""
    try:
        return (os.get_terminal_size(stream.fileno()).columns or WIDEST + 1) - 1 if stream.isatty() else None
    except (OSError, ValueError):
        return None


def fold(text: str, width: int, indent: int = 2) -> str:
    """Break a line between words, and indent what follows.

    A longer word, such as a path, stays in one piece and can be copied; a number stays with its unit.
    """
    if len(text) <= width:
        return text
    joined = _BEFORE_UNIT.sub("\xa0", text)
    lines = textwrap.wrap(joined, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\xa0", " ")


def is_in_foreground() -> bool:
    """Whether the keys of the terminal, such as Ctrl-C, reach this process itself."""
    try:
        return os.tcgetpgrp(_file()) == os.getpgrp()
    except OSError:
        return False


def set_rows(rows: int) -> None:
    """Say how many rows the bars occupy now, at least 1: the line of the cursor."""
    global _rows
    _rows = rows


def make_room(rows: int) -> str:
    """Return what clears so many rows of bars, the cursor at the end of the last, and leaves it at their first."""
    return "\r" + "\x1b[A" * (rows - 1) + "\x1b[J"


def say_above_bars(line: str) -> None:
    """Write a line where the bars are, which draw themselves again below it. A signal handler may call this.

    Only one write to the terminal, past all buffers; nothing if there is none.
    """
    _write(f"{make_room(_rows)}{line}\r\n" + "\n" * (_rows - 1))


def let_line_pass() -> None:
    """Move the bars below a line that another process has just written over their last row."""
    above = _rows - 1
    if above:
        _write("\x1b[A" * _rows + f"\x1b[{above}M" + "\x1b[B" + "\n" * above)


def _write(text: str) -> None:
    try:
        if os.isatty(_file()):
            os.write(_file(), text.encode())
    except OSError:
        pass


def _file() -> int:
    """Return the standard stream that is a terminal."""
    return 2 if os.isatty(2) else 1
