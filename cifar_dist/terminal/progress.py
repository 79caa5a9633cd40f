"""The progress of a task that takes a while: a bar or a line at a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from cifar_dist.errors import printable
from cifar_dist.terminal.screen import ERASE_LINE, ROOM_FOR_KEYS, columns, is_terminal

Advance = Callable[[int], None]
"""Counts units that are done since the last call."""

Show = Callable[[int], AbstractContextManager[Advance]]
"""Shows the progress of a task of so many units, while its context lasts."""


@contextlib.contextmanager
def silent(total: int) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda count: None


@contextlib.contextmanager
def waiting(what: str, *, show: bool = True) -> Iterator[None]:
    """Show at a terminal, on stderr, what a task without steps does; the line disappears when it ends.

    The cursor stays at the beginning of the line, so that whatever is printed meanwhile replaces it.

    Args:
        what: description of the task, for example ``loading PyTorch``; may contain untrusted names.
        show: False shows nothing.
    """
    if not (show and is_terminal(sys.stderr)):
        yield
        return
    text = f"{printable(what)} ..."[: columns(sys.stderr)]
    print(f"{ERASE_LINE}{text}\r", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(ERASE_LINE, end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(what: str, total: int, unit: str = "images", *, show: bool = True) -> Iterator[Advance]:
    """Show the progress of a task of ``total`` units on stderr; yield ``advance(n)``, to call after n more units.

    At a terminal it is a bar, in a log plain lines.

    Args:
        what: description of the task, for example ``packing train``; may contain untrusted names.
        total: number of units; 0 if unknown.
        unit: name of the units.
        show: False shows nothing.
    """
    what = printable(what)
    if not show:
        yield lambda count: None
    elif is_terminal(sys.stderr):
        with _bar(what, total) as advance:
            yield advance
    else:
        with _log_lines(what, total, unit) as advance:
            yield advance


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    whole = Column(no_wrap=True, min_width=len(f"{total}/{total}"))
    parts = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(table_column=Column(min_width=8)),
        MofNCompleteColumn(table_column=whole) if total else TextColumn("{task.completed}"),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
    )
    stream = sys.stderr  # which a bar replaces while it is shown
    console = Console(file=stream, width=columns(stream, spare=ROOM_FOR_KEYS))
    # What is printed meanwhile appears above the bar, unless it goes into a file or a pipe.
    with Progress(*parts, console=console, redirect_stdout=sys.stdout.isatty()) as bar:
        console.show_cursor()  # which a process that is stopped or killed could not give back
        task = bar.add_task(what, total=total or None)

        def advance(count: int) -> None:
            console.width = columns(stream, spare=ROOM_FOR_KEYS)
            bar.advance(task, count)

        yield advance


@contextlib.contextmanager
def _log_lines(what: str, total: int, unit: str) -> Iterator[Advance]:
    """Print one line per quarter, or a single one at the end if the total is unknown."""
    done = quarters = 0

    def advance(count: int) -> None:
        nonlocal done, quarters
        done += count
        if total and 4 * done // total > quarters:
            quarters = 4 * done // total
            print(f"{what}: {done:,} of {total:,} {unit}", file=sys.stderr, flush=True)

    yield advance
    if not total:
        print(f"{what}: {done:,} {unit}", file=sys.stderr, flush=True)
