"""Output for people: a few lines in a log, a bar on a terminal, tables with aligned columns."""

from __future__ import annotations

import math
import os
import pty
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_dist.formatting import (
    beginning,
    clock,
    duration,
    loss_figure,
    markdown,
    markdown_folded,
    percent,
    percent_cell,
    size,
    width_of,
)
from cifar_dist.terminal.progress import progress
from cifar_dist.terminal.screen import fold

CELLS = st.lists(st.lists(st.text(max_size=8), min_size=2, max_size=2), max_size=4)


@given(CELLS)
def test_lines_have_one_length_and_contain_their_cells(rows: list[list[str]]) -> None:
    table = markdown(["name", "figure"], rows, ["figure"])
    lines = table.split("\n")
    assert lines.pop() == ""
    assert len(lines) == 2 + len(rows)
    assert len(set(map(width_of, lines))) == 1
    assert all(line.isprintable() for line in lines)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)


def test_a_letter_of_two_columns_counts_twice() -> None:
    assert markdown(["name", "figure"], [["\u732b\u72ac", "1"], ["cat", "2"]]).splitlines()[2:] == [
        "| \u732b\u72ac | 1      |",
        "| cat  | 2      |",
    ]
    table = markdown(["name", "figure"], [["\u732b" * 30, "1"]], width=40)
    assert max(map(width_of, table.splitlines())) <= 40


def test_an_accent_takes_no_column() -> None:
    assert width_of("e\u0301t") == 2
    assert beginning("e\u0301t", 1) == "e\u0301"
    assert beginning("\u732b\u72ac", 3) == "\u732b"


def test_numbers_are_right_aligned() -> None:
    assert markdown(["run", "val %"], [["a|b", "9.50"], ["c", "10.25"]], ["val %"]) == (
        "| run  | val % |\n| ---- | ----: |\n| a\\|b |  9.50 |\n| c    | 10.25 |\n"
    )


def test_a_bar_is_escaped_after_backslashes_too() -> None:
    assert markdown(["run"], [[r"a\\|b"], [r"\|"], [r"c\d"]]).splitlines()[2:] == [
        r"| a\\\\\|b |",
        r"| \\\|     |",
        r"| c\d      |",
    ]


def test_a_folded_line_keeps_numbers_with_their_units_and_words_in_one_piece() -> None:
    assert fold("evaluation 15 %, rest 12 %, forward 5 %", 26, 4) == "evaluation 15 %, rest\n    12 %, forward 5 %"
    assert fold("822 MB at most: " + "a" * 40, 20) == "822 MB at most:\n  " + "a" * 40
    assert fold("short", 30) == "short"


def test_numbers_are_formatted_for_readers() -> None:
    losses = [0.47849, 999.99994, 999.99996, 9998.9, 99_999.9, 99_999.96, 9614646837248.0]
    assert [loss_figure(loss) for loss in losses] == [
        *("0.4785", "999.9999", "1000.0", "9998.9", "99999.9", "1e+05", "9.61e+12")
    ]
    assert (percent_cell(0.91084), percent_cell(None)) == ("91.08", "")
    assert (percent(0.91084), percent(0.91084, 0)) == ("91.08 %", "91 %")
    assert [size(n) for n in (0, 999, 1000, 99_499, 99_500, 999_499, 999_500, 1.2e9, 5e12)] == [
        *("0 B", "999 B", "1 kB", "99.5 kB", "100 kB", "999 kB", "1 MB", "1.2 GB", "5 TB")
    ]
    assert [duration(seconds) for seconds in (0.34, 9.96, 41, 59.4, 59.7, 738, 3596.9, 3597.1, 9000)] == [
        "0.3 s",
        "10 s",
        "41 s",
        "59 s",
        "1.0 min",
        "12.3 min",
        "59.9 min",
        "1.0 h",
        "2.5 h",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (90061, "1d 1:01:01"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_a_clock_shows_hours_and_days_once_there_are_any(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_log_gets_a_line_for_each_quarter(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("packing train", 1000) as advance:
        for _ in range(10):
            advance(100)
    captured = capsys.readouterr()
    assert captured.out == "", "stdout stays data"
    assert captured.err.splitlines() == [f"packing train: {n} of 1,000 images" for n in ("300", "500", "800", "1,000")]


def test_a_log_of_an_unknown_total_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 0, "files") as advance:
        advance(3)
        advance(4)
    assert capsys.readouterr().err == "reading: 7 files\n"


def test_a_name_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("predicting \x1b[2J[bold]\n.pkl", 1) as advance:
        advance(1)
    assert capsys.readouterr().err == "predicting \\x1b[2J[bold]\\n.pkl: 1 of 1 images\n"


def test_a_bar_shows_a_name_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        with progress("predicting [bold]a\x1b[2J", 2) as advance:
            advance(2)
        stream.flush()
        shown = ""
        while "2/2" not in shown:  # the terminal hands it over in pieces
            shown += os.read(reader, 65536).decode()
    os.close(reader)
    assert "predicting [bold]a\\x1b[2J" in shown
    assert "2/2" in shown


def test_a_table_fits_the_terminal_and_names_the_columns_that_it_omits() -> None:
    head, rows = ["run", "model", "val %", "size"], [["a-rather-long-name", "small-resnet", "91.20", "1 kB"]] * 2
    whole = markdown(head, rows, ["val %"])
    assert markdown(head, rows, ["val %"], width=len(whole.splitlines()[0]), dispensable=["size"]) == whole
    *table, _, note, more = markdown(head, rows, ["val %"], width=46, dispensable=["size", "model"]).splitlines()
    assert table[2] == "| a-rather-long-name | small-resnet | 91.20 |"
    assert (note, more) == ("not shown, for lack of space: size; to see all", "of it, add: | less -S")
    short = markdown(head, rows, ["val %"], width=40).splitlines()
    assert max(map(len, short)) <= 40
    assert "..." in short[2], "any terminal has its characters"
    assert short[2].isascii()


def test_a_text_is_shortened_by_what_the_terminal_lacks_and_never_to_nothing() -> None:
    head, rows = ["run", "model"], [["a run of a long name", "a network"]]
    assert [markdown(head, rows, width=width).splitlines()[2] for width in (30, 31)] == [
        "| a run of a... | a network |",
        "| a run of a l... | a network |",
    ]
    assert markdown(["run"], [["b" * 20]], width=5).splitlines()[2] == "| bbbbb... |"


def test_texts_that_begin_alike_are_shortened_in_the_middle() -> None:
    names = [f"small-resnet-study.extra-conv-dropout-0.{one}.s{seed}" for one in (1, 2) for seed in (0, 1)]
    table = markdown(["run"], [[name] for name in [*names, "another-name-that-is-too-long"]], width=30)
    assert table.splitlines()[2:] == [
        "| small-resnet...pout-0.1.s0 |",
        "| small-resnet...pout-0.1.s1 |",
        "| small-resnet...pout-0.2.s0 |",
        "| small-resnet...pout-0.2.s1 |",
        "| another-name-that-is-to... |",
    ]


@pytest.mark.parametrize("width", range(29, 60))
def test_texts_that_differ_in_one_part_remain_different(width: int) -> None:
    rates = [f"lr-weight-decay.lr={rate}+weight_decay=0.001.s0" for rate in (0.1, 0.3)]
    table = markdown(["run"], [[rate] for rate in rates], width=width)
    assert len({*table.splitlines()}) == 4
    assert max(map(len, table.splitlines())) <= width


@given(st.lists(st.text(r"\|ab", min_size=4, max_size=30), min_size=2, max_size=6), st.integers(12, 30))
def test_a_shortened_text_breaks_no_table(texts: list[str], width: int) -> None:
    for line in markdown(["name"], [[text] for text in texts], width=width).splitlines():
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 2


@pytest.mark.parametrize(
    "names",
    [
        [f"small-resnet-study.extra-conv-dropout-0.2.s{seed}" for seed in range(5)],
        [f"lr-weight-decay.lr=0.{lr}+weight_decay=0.{decay}.s0" for lr in ("1", "001") for decay in ("1", "0003", "3")],
    ],
)
def test_names_of_columns_that_begin_alike_remain_different(names: list[str]) -> None:
    """In tables that follow each other, too."""
    tables = markdown_folded(["", *names], [["transforms", *["[crop, flip, cutout, mixup]"] * len(names)]], 80)
    shown = [cell.strip() for line in tables.splitlines() if ".s" in line for cell in line.strip("|").split("|")[1:]]
    assert len({*shown}) == len(shown) == len(names)
    assert max(map(len, tables.splitlines())) <= 80


def test_columns_without_room_follow_in_further_tables() -> None:
    head = ["", *(f"sweep.lr=0.{number}.s0" for number in range(5))]
    rows = [["val %", *["**97.97**"] * 5], ["transforms", *["[crop, flip, cutout, mixup]"] * 5]]
    assert markdown_folded(head, rows, None) == markdown(head, rows)
    folded = markdown_folded(head, rows, 60)
    assert max(map(len, folded.splitlines())) <= 60
    assert [line.count("97.97") for line in folded.splitlines() if "val %" in line] == [2, 2, 1]
    assert all(name in folded for name in head), "they fit, and so do the results"
