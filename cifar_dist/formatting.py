"""Format text for people (durations, sizes, percentages, tables), and tables for programs (CSV)."""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate, chain

from cifar_dist.errors import printable

_GAP = "..."  # which any terminal has
_SHORTEST = 8  # columns that remain of a shortened text
_READABLE_CELL = 12  # columns, of a result or a count
_READABLE_NAME = 24  # columns, at which most names differ


def width_of(text: str) -> int:
    """Count the columns that a line takes; a letter of Chinese, Japanese or Korean takes two."""
    return len(text) if text.isascii() else sum(map(_width_of_letter, text))


def beginning(text: str, columns: int) -> str:
    """Return as much of a line as so many columns have room for."""
    ends = accumulate(map(_width_of_letter, text))
    return "".join(letter for letter, end in zip(text, ends, strict=True) if end <= columns)


def _width_of_letter(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def csv_text(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Format a CSV with a line for the names of its columns; None is an empty cell.

    Bytes of a file's name that are not UTF-8 are written as escapes, so that no result is lost.
    """
    return "".join(map(_csv_line, chain([head], rows))).encode(errors="backslashreplace").decode()


def _csv_line(cells: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # it quotes only the line breaks that it writes
    return line.getvalue().removesuffix("\r\n") + "\n"


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
    """Format a duration with its unit: ``0.3 s``, ``41 s``, ``12.3 min``, ``2.5 h``."""
    if 0 <= seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 59.95 * 60 else f"{seconds / 3600:.1f} h"


def percent(fraction: float, digits: int = 2) -> str:
    """Format a fraction as a percentage with so many decimals: ``91.08 %``."""
    return f"{100 * fraction:.{digits}f} %"


def rounded_percent(fraction: float) -> str:
    """Format a fraction as a percentage without decimals: ``91 %``; ``< 1 %`` for one above 0 that rounds to it."""
    return "< 1 %" if 0 < fraction <= 0.005 else percent(fraction, 0)


def loss_figure(loss: float) -> str:
    """Format a loss in the eight columns that it has: ``0.4785``, or ``9.61e+12`` of a run that diverges."""
    if loss < 999.99995:
        return f"{loss:.4f}"
    return f"{loss:.1f}" if loss < 99_999.95 else f"{loss:.3g}"


def percent_cell(fraction: float | None) -> str:
    """Format a fraction for a column of percentages, without the sign: ``91.08``; empty for None."""
    return "" if fraction is None else percent(fraction).removesuffix(" %")


def size(count: float) -> str:
    """Format a number of bytes: ``312 kB``, ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 99.5 or unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def and_more(shown: Sequence[str], total: int) -> str:
    """Join the texts that are shown, and count the others of ``total``: ``a, b, c and 7 more``."""
    more = f" and {total - len(shown):,} more" if total > len(shown) else ""
    return f"{', '.join(shown)}{more}"


def list_some(names: Sequence[str], limit: int = 3) -> str:
    """Quote the first names, and count the others: ``'a', 'b', 'c' and 7 more``."""
    return and_more([f"'{name}'" for name in names[:limit]], len(names))


def counted(count: int, noun: str) -> str:
    """Format a count of things: ``1 image``, ``2,000 images``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def it_or_them(names: Sequence[str]) -> str:
    """Return the pronoun for things that were named."""
    return "it" if len(names) == 1 else "them"


def list_renamed(old: Sequence[str], new: Sequence[str]) -> str:
    """List the first names that are others in ``new``, and count the rest: ``a -> b, b -> a``; empty for none."""
    renamed = [f"{before} -> {after}" for before, after in zip(old, new, strict=False) if before != after]
    return and_more(renamed[:3], len(renamed))


def markdown(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Collection[str] = (),
    *,
    width: int | None = None,
    dispensable: Sequence[str] = (),
    heads: Sequence[str] = (),
) -> str:
    """Format a Markdown table with aligned columns; cells are escaped, so their content cannot break the table.

    Args:
        head: column names.
        rows: cells, one for each column.
        numbers: names of the columns to right-align.
        width: of the terminal that the table must fit into; None for a file or a pipe.
        dispensable: names of columns to leave out for it, the first one first; then the longest texts are shortened,
            in the middle where others of the column begin alike.
        heads: names of columns, of this table and of others, that remain different when they are shortened.
    """
    lines = [list(map(_escape, row)) for row in (head, *rows)]
    left_out: list[str] = []
    if width is not None:
        lines, left_out = _fit(lines, width, dispensable, list(map(_escape, heads or head)))
        head = lines[0]
    widths = [max(3, *map(width_of, column)) for column in zip(*lines, strict=True)]
    right = [name in numbers for name in head]
    lines.insert(1, ["-" * (width - flush) + ":" * flush for width, flush in zip(widths, right, strict=True)])
    text = ""
    for line in lines:
        room = [" " * (width - width_of(cell)) for cell, width in zip(line, widths, strict=True)]
        cells = [space + cell if flush else cell + space for cell, space, flush in zip(line, room, right, strict=True)]
        text += f"| {' | '.join(cells)} |\n"
    if left_out and width is not None:
        note = f"not shown, for lack of space: {', '.join(left_out)}; to see all of it, add: |\xa0less\xa0-S"
        folded = textwrap.fill(note, width, break_long_words=False).replace("\xa0", " ")  # less with its option
        text += f"\n{folded}\n"
    return text


def markdown_folded(head: Sequence[str], rows: Iterable[Sequence[str]], width: int | None) -> str:
    """Format a Markdown table; columns without room follow in further tables, whose first column is the same.

    Args:
        head, rows: as of :func:`markdown`.
        width: of the terminal; None for a file or a pipe, where there is one table.
    """
    lines = [*rows]
    # As many columns as most names need, or as all of them need to remain different.
    longest = max(map(width_of, head), default=0)
    enough = (columns for columns in range(_READABLE_NAME, longest) if _remain_different(head, columns))
    readable = next(enough, longest)
    wanted = [
        max(3, min(width_of(name), readable), *(min(width_of(line[column]), _READABLE_CELL) for line in lines)) + 3
        for column, name in enumerate(head)
    ]
    tables = [[0]]
    for column in range(1, len(head)):
        if width is not None and len(tables[-1]) > 1 and sum(wanted[one] for one in (*tables[-1], column)) >= width:
            tables.append([0])
        tables[-1].append(column)
    return "\n".join(
        markdown(
            [head[one] for one in table], [[line[one] for one in table] for line in lines], width=width, heads=head
        )
        for table in tables
    )


def _escape(cell: str) -> str:
    # A backslash before the one that escapes a bar would escape that one instead.
    return re.sub(r"(\\*)\|", r"\1\1\\|", printable(cell))


def _fit(
    lines: list[list[str]], width: int, dispensable: Sequence[str], heads: Sequence[str]
) -> tuple[list[list[str]], list[str]]:
    """Return a table, its head first, that fits into ``width``, and the columns that were left out for it."""
    left_out: list[str] = []
    for name in dispensable:
        if _table_width(lines) > width and name in lines[0]:
            place = lines[0].index(name)
            lines = [line[:place] + line[place + 1 :] for line in lines]
            left_out.append(name)
    whole = [line.copy() for line in lines]
    while (excess := _table_width(lines) - width) > 0:
        widths = [max(map(width_of, column)) for column in zip(*lines, strict=True)]
        longest = widths.index(max(widths))
        room = max(widths[longest] - excess, _SHORTEST, sorted(widths)[-2] if len(widths) > 1 else 0)
        room = room if room < widths[longest] else widths[longest] - 1
        if room < _SHORTEST:
            break
        head, *texts = [line[longest] for line in whole]
        for line, text in zip(lines, [*_shorten([head], heads, room), *_shorten(texts, texts, room)], strict=True):
            line[longest] = text
    return lines, left_out


def _shorten(texts: Sequence[str], others: Collection[str], columns: int) -> list[str]:
    """Shorten texts to so many columns: at their ends, or in the middle where one of ``others`` begins alike."""
    different = {*texts, *others}
    count = Counter(_cut(text, columns, 0) for text in different)
    alike = {text for text in different if count[_cut(text, columns, 0)] > 1}
    rest = columns - len(_GAP)
    tails = (rest // 2, rest * 3 // 4, rest)
    tail = max(tails, key=lambda tail: len({_cut(text, columns, tail) for text in alike}))  # the first of equals
    return [_cut(text, columns, tail if text in alike else 0) for text in texts]


def _remain_different(texts: Sequence[str], columns: int) -> bool:
    return len({*_shorten(texts, texts, columns)}) == len({*texts})


def _cut(text: str, columns: int, tail: int) -> str:
    """Shorten a text to so many columns, of which the last ``tail`` are its end."""
    if width_of(text) <= columns:
        return text
    end = beginning(text[::-1], tail)[::-1]
    if re.match(r"(\\\\)*\|", end):  # a bar whose escape is cut off
        end = end[1:]
    return f"{beginning(text, columns - len(_GAP) - tail).rstrip()}{_GAP}{end.lstrip()}"


def _table_width(lines: Sequence[Sequence[str]]) -> int:
    return sum(max(3, *map(width_of, column)) + 3 for column in zip(*lines, strict=True)) + 1
