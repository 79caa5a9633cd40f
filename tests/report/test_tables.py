"""Tables: whatever a cell holds stays in its cell, and the columns stand one below the other."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from cifar_dist.report.tables import markdown, percent, size

CELLS = st.lists(st.lists(st.text(max_size=8), min_size=2, max_size=2), max_size=4)


@given(CELLS)
def test_lines_are_of_one_length_and_hold_their_cells(rows: list[list[str]]) -> None:
    table = markdown(["name", "figure"], rows, ["figure"])
    lines = table.split("\n")
    assert lines.pop() == ""
    assert len(lines) == 2 + len(rows)
    assert len(set(map(len, lines))) == 1
    assert all(line.isprintable() for line in lines)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)


def test_figures_stand_flush_right() -> None:
    assert markdown(["run", "val %"], [["a|b", "9.50"], ["c", "10.25"]], ["val %"]) == (
        "| run  | val % |\n| ---- | ----: |\n| a\\|b |  9.50 |\n| c    | 10.25 |\n"
    )


def test_words_for_figures() -> None:
    assert (percent(0.91084), percent(None)) == ("91.08", "")
    assert [size(n) for n in (0, 999, 1000, 99_499, 99_500, 999_499, 999_500, 1.2e9, 5e12)] == [
        *("0 B", "999 B", "1 kB", "99.5 kB", "100 kB", "999 kB", "1 MB", "1.2 GB", "5 TB")
    ]
