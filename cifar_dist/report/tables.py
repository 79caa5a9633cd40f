"""Tables for a reader: markdown that is in columns as it stands, too."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from cifar_dist.errors import printable


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = ()) -> str:
    """A table; whatever a cell holds stays in it.

    Args:
        head: a name for each column.
        rows: a cell for each column.
        numbers: names of the columns that are set flush right.
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


def percent(fraction: float | None) -> str:
    """``91.08``; empty for what is not known."""
    return "" if fraction is None else f"{100 * fraction:.2f}"


def size(count: float) -> str:
    """Of a file, for a reader: ``312 kB``, ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 99.5 or unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
