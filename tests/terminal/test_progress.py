"""Progress: a few lines in a log, a bar on a terminal."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from cifar_dist.terminal.progress import progress
from cifar_dist.terminal.screen import fold


def test_a_folded_line_keeps_numbers_with_their_units_and_words_in_one_piece() -> None:
    assert fold("evaluation 15 %, rest 12 %, forward 5 %", 26, 4) == "evaluation 15 %, rest\n    12 %, forward 5 %"
    assert fold("822 MB at most: " + "a" * 40, 20) == "822 MB at most:\n  " + "a" * 40
    assert fold("short", 30) == "short"


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
