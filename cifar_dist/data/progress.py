"""How far a long job is: a bar on a terminal, plain lines in a log. On stderr, so that stdout stays data."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from cifar_dist.errors import printable

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress(what: str, total: int, unit: str = "images", *, show: bool = True) -> Iterator[Advance]:
    """Show how far a job of ``total`` units is; yields ``advance(n)``, to be told of n more units.

    Args:
        what: what is done, for example ``packing train``; a name in it may hold anything.
        total: units when done; 0 where that is not known.
        unit: what is counted.
        show: False says nothing.
    """
    what = printable(what)
    if not show:
        yield lambda count: None
    elif sys.stderr.isatty():
        with _bar(what, total) as advance:
            yield advance
    else:
        with _lines(what, total, unit) as advance:
            yield advance


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total or None)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def _lines(what: str, total: int, unit: str) -> Iterator[Advance]:
    """A line at each quarter, and one at the end where the total is not known: enough for a log."""
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
