"""Tables with aligned columns, which fit a terminal."""

from __future__ import annotations

import cProfile
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_dist.tables import beginning, markdown, markdown_folded, width_of

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


def test_the_work_for_a_folded_table_grows_as_its_columns_do() -> None:
    def calls(runs: int) -> int:
        head = ["", *(f"study.lr-0.{run:04}-dropout-0.1.s0" for run in range(runs))]
        profile = cProfile.Profile()
        profile.runcall(markdown_folded, head, [["val %", *["90.00"] * runs]], 80)
        return sum(entry.callcount for entry in profile.getstats())

    assert calls(400) < 2.5 * calls(200)


def test_columns_without_room_follow_in_further_tables() -> None:
    head = ["", *(f"sweep.lr=0.{number}.s0" for number in range(5))]
    rows = [["val %", *["**97.97**"] * 5], ["transforms", *["[crop, flip, cutout, mixup]"] * 5]]
    assert markdown_folded(head, rows, None) == markdown(head, rows)
    folded = markdown_folded(head, rows, 60)
    assert max(map(len, folded.splitlines())) <= 60
    assert [line.count("97.97") for line in folded.splitlines() if "val %" in line] == [2, 2, 1]
    assert all(name in folded for name in head), "they fit, and so do the results"
