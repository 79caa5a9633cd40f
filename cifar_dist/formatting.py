"""Format text for people: durations, sizes, percentages, tables."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Sequence

from cifar_dist.errors import printable


def clock(seconds: float) -> str:
    """Format a duration as ``m:ss``, ``h:mm:ss`` or ``Nd h:mm:ss``; a dash if it is not finite."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}:{rest:02}"
    days, hours = divmod(hours, 24)
    text = f"{hours}:{minutes:02}:{rest:02}"
    return f"{days}d {text}" if days else text


def duration(seconds: float) -> str:
    """Format a duration with its unit: ``41 s``, ``12.3 min``, ``2.5 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def percent(fraction: float | None) -> str:
    """Format a fraction as a percentage without the sign: ``91.08``; empty for None."""
    return "" if fraction is None else f"{100 * fraction:.2f}"


def size(count: float) -> str:
    """Format a number of bytes: ``312 kB``, ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 99.5 or unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def list_some(names: Sequence[str], limit: int = 3) -> str:
    """Quote the first names, and count the others: ``'a', 'b', 'c' and 7 more``."""
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return f"{shown} and {len(names) - limit:,} more" if len(names) > limit else shown


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on stderr, one line each; they may contain untrusted names."""
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr, flush=True)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = ()) -> str:
    """Format a Markdown table with aligned columns; cells are escaped, so their content cannot break the table.

    Args:
        head: column names.
        rows: cells, one for each column.
        numbers: names of the columns to right-align.
    """
    lines = [[printable(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    right = [name in numbers for name in head]
    lines.insert(1, ["-" * (width - flush) + ":" * flush for width, flush in zip(widths, right, strict=True)])
    text = ""
    for line in lines:
        columns = zip(line, widths, right, strict=True)
        text += (
            f"| {' | '.join(cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in columns)} |\n"
        )
    return text
