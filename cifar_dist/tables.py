"""Tables: Markdown for people, which fits a terminal, and CSV for programs."""

from __future__ import annotations

import csv
import io
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, chain

from cifar_dist.errors import printable

_GAP = "..."  # which any terminal has
_SHORTEST = 8  # columns that remain of a shortened text
_READABLE_CELL = 12  # columns, of a result or a count
_READABLE_NAME = 24  # columns, at which most names differ


def markdown(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Collection[str] = (),
    *,
    width: int | None = None,
    dispensable: Sequence[str] = (),
    heads: tuple[str, ...] = (),
) -> str:
    """Format a Markdown table with aligned columns; cells are escaped, so their content cannot break the table.

    Args:
        head: column names.
        rows: cells, one for each column.
        numbers: names of the columns to right-align.
        width: of the terminal that the table must fit into; None for a file or a pipe.
        dispensable: names of columns to leave out for it, the first one first; then the longest texts are shortened,
            in the middle where others of the column begin alike.
        heads: names of columns, of this table and of others, escaped, that remain different when they are shortened.
    """
    lines = [list(map(_escape, row)) for row in (head, *rows)]
    left_out: list[str] = []
    if width is not None:
        lines, left_out = _fit(lines, width, dispensable, heads or tuple(lines[0]))
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
    lines, heads = [*rows], tuple(map(_escape, head))
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
            [head[one] for one in table], [[line[one] for one in table] for line in lines], width=width, heads=heads
        )
        for table in tables
    )


def csv_text(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Format a CSV with a line for the names of its columns; None is an empty cell.

    Bytes of a file's name that are not UTF-8 are written as escapes, so that no result is lost.
    """
    return "".join(map(_csv_line, chain([head], rows))).encode(errors="backslashreplace").decode()


def _csv_line(cells: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # it quotes only the line breaks that it writes
    return line.getvalue().removesuffix("\r\n") + "\n"


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


def _escape(cell: str) -> str:
    # A backslash before the one that escapes a bar would escape that one instead.
    return re.sub(r"(\\*)\|", r"\1\1\\|", printable(cell))


def _fit(
    lines: list[list[str]], width: int, dispensable: Sequence[str], heads: tuple[str, ...]
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
        short = [*_shorten([head], heads, room), *_shorten(texts, tuple(texts), room)]
        for line, text in zip(lines, short, strict=True):
            line[longest] = text
    return lines, left_out


def _shorten(texts: Sequence[str], others: tuple[str, ...], columns: int) -> list[str]:
    """Shorten some of ``others`` to so many columns: at their ends, or in the middle where two of these begin alike."""
    alike, tail = _alike(others, columns)
    return [_cut(text, columns, tail if text in alike else 0) for text in texts]


@lru_cache(maxsize=16)  # the tables of a folded one have the same heads, which may be thousands
def _alike(texts: tuple[str, ...], columns: int) -> tuple[frozenset[str], int]:
    """Return the texts that begin alike in so many columns, and how much of their ends tells most of them apart."""
    different = {*texts}
    count = Counter(_cut(text, columns, 0) for text in different)
    alike = frozenset(text for text in different if count[_cut(text, columns, 0)] > 1)
    rest = columns - len(_GAP)
    tails = (rest // 2, rest * 3 // 4, rest)
    # The first of equals.
    return alike, max(tails, key=lambda tail: len({_cut(text, columns, tail) for text in alike}))


def _remain_different(texts: Sequence[str], columns: int) -> bool:
    return len({*_shorten(texts, tuple(texts), columns)}) == len({*texts})


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
