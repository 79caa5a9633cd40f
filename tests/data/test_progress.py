"""How far a long job is: a few lines in a log, a bar on a terminal, and no name that breaks either."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from cifar_dist.data.progress import progress


def test_a_log_gets_a_line_a_quarter(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_name_cannot_reach_the_terminal_as_more_than_text(capsys: pytest.CaptureFixture[str]) -> None:
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
