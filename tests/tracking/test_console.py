from __future__ import annotations

import contextlib
import fcntl
import io
import math
import os
import re
import resource
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recorded import FACTS, train, val
from support.running import PATIENCE
from support.screen import Screen

from cifar_dist.terminal import screen as terminal
from cifar_dist.tracking import console
from cifar_dist.tracking.console import RunConsole
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.table import EpochTable

HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]x[/] :smile: \u202e\udc80\r\x9b8m"
HARMLESS = r"\x1b[2J\x1b]0;owned\x07[red]x[/] :smile: \u202e\udc80\r\x9b8m"
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")


class Reader:
    """Collects the output at the other end of a pipe or a terminal, so that no writer blocks."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen = b""
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        with contextlib.suppress(OSError):  # a terminal that nobody writes to any more
            while part := os.read(self._descriptor, 65536):
                self._seen += part

    def text(self) -> str:
        """Return all output; the writing end must be closed."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        os.close(self._descriptor)
        return self._seen.decode()


def open_pipe(encoding: str = "utf-8") -> tuple[int, TextIO]:
    outside, inside = os.pipe()
    return outside, open(inside, "w", encoding=encoding)


def open_terminal(columns: int = 140) -> tuple[int, TextIO]:
    outside, inside = os.openpty()
    resize(inside, columns)
    return outside, open(inside, "w", encoding="utf-8")


def resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))


@pytest.fixture(autouse=True)
def terminal_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "training.log"
    yield path
    for line in path.read_text(encoding="utf-8").splitlines():
        assert STAMP.match(line), f"without its time: {line!r}"
        assert line.isprintable()


def tell_everything(run: RunConsole) -> None:
    run.banner("demo", [*FACTS.lines(), ("folder", "runs/demo")])
    run.say("two lines\nat once")
    run.warn("careful")
    table = EpochTable()
    for step in range(1, 7):
        run.progress([train(step)])
        table.add([train(step)])
    table.add([val(1)])
    run.epoch(table.row(0), best=False)
    run.epoch(table.row(1), best=True)
    run.note("for the log alone")
    run.close()


def without_times(log: Path) -> str:
    return "".join(STAMP.sub("", line, count=1) for line in log.read_text().splitlines(keepends=True))


def test_a_pipe_gets_plain_lines_even_where_colour_is_forced(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    descriptor, stream = open_pipe()
    reader = Reader(descriptor)
    tell_everything(RunConsole(log, FACTS, stream=stream))
    stream.close()
    said = reader.text()
    assert all(line.isprintable() for line in said.split("\n"))
    assert said + "for the log alone\n" == without_times(log)
    assert said.startswith("demo\nmodel  tiny-cnn, 1,234 parameters\n")
    assert "two lines\nat once\nwarning: careful\n" in said
    assert re.search(r"^ +1/2 +1\.5000 +50\.00 % +- +- +0\.1 +40 +0:01$", said, re.MULTILINE)
    assert re.search(r"^ +2/2 +1\.5000 +50\.00 % +0\.5000 +75\.00 % +0\.1 +40 +0:01 best$", said, re.MULTILINE)
    assert said.count("train loss") == 1, "one header"


@pytest.mark.parametrize(("interval", "lines"), [(0.0, 6), (math.inf, 0)])
def test_a_pipe_gets_a_progress_line_each_interval(
    log: Path, monkeypatch: pytest.MonkeyPatch, interval: float, lines: int
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL", interval)
    descriptor, stream = open_pipe()
    reader = Reader(descriptor)
    tell_everything(RunConsole(log, FACTS, stream=stream))
    stream.close()
    progress = [line for line in reader.text().splitlines() if re.match(r"epoch \d", line)]
    assert len(progress) == lines
    if progress:
        assert progress[4].startswith("epoch 2/2 step 5/6  loss 1.5000  acc 50.00 %  lr 0.1  40 images/s  ")


def test_a_terminal_gets_bars_and_keeps_the_lines(log: Path) -> None:
    descriptor, stream = open_terminal()
    reader = Reader(descriptor)
    own, threads = (sys.stdout, sys.stderr), {*threading.enumerate()}
    run = RunConsole(log, FACTS, stream=stream)
    run.progress([train(1)])
    run.progress([train(2), train(3)])
    assert {*threading.enumerate()} <= threads, "no thread draws: one would meet every signal and fork"
    assert sys.stderr is own[1], "a redirected stderr stays where it goes"
    tell_everything(run)
    assert (sys.stdout, sys.stderr) == own
    stream.close()
    said = reader.text()
    assert "━" in said
    hidden = [part.split("\x1b[?25h")[0] for part in said.split("\x1b[?25l")[1:]]
    assert not any("loss" in part for part in hidden), "the cursor is visible beside bars, and after a kill"
    assert "epoch 1/2" in said
    assert "loss 1.5000  acc 50.00 %  lr 0.1" in said
    assert "40 images/s" in said
    permanent = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert re.search(r" +2/2 +1\.5000 .* best", permanent)
    assert "best" in log.read_text()
    assert "━" not in log.read_text()


def test_an_epoch_that_lost_its_steps_has_no_learning_rate(log: Path) -> None:
    stream = io.StringIO()
    (row,) = EpochTable([Record(10, 0, "val", 1.0, 0.5, 10, 1.0)]).rows()
    RunConsole(log, FACTS, stream=stream).epoch(row, best=False)
    assert "nan" not in stream.getvalue()


def test_a_dumb_terminal_is_written_to_as_a_pipe_is(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    descriptor, stream = open_terminal()
    reader = Reader(descriptor)
    tell_everything(RunConsole(log, FACTS, stream=stream))
    stream.close()
    assert all(line.isprintable() for line in reader.text().replace("\r\n", "\n").split("\n"))


@pytest.mark.parametrize("where", ["pipe", "terminal"])
def test_hostile_names_do_not_control_the_terminal(log: Path, where: str) -> None:
    descriptor, stream = open_pipe() if where == "pipe" else open_terminal()
    reader = Reader(descriptor)
    run = RunConsole(log, FACTS, stream=stream)
    run.banner(f"{HOSTILE}\nforged", [("data", f"{HOSTILE}\nforged")])
    run.say(HOSTILE)
    run.warn(HOSTILE)
    run.close()
    stream.close()
    said = reader.text()
    for bad in ("\x1b[2J", "\x1b]0", "\x07", "\u202e", "\x9b", "\r\x9b"):
        assert bad not in said
    assert said.count(HARMLESS) == 4
    assert r"\nforged" in said
    assert not re.search(r"^\W*forged", said, re.MULTILINE), "a name cannot begin a line of its own"
    assert log.read_text().count(HARMLESS) == 4


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(), max_size=60))
def test_no_message_puts_a_control_character_into_a_pipe_or_the_log(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    log = tmp_path_factory.getbasetemp() / "any.log"
    log.unlink(missing_ok=True)
    descriptor, stream = open_pipe()
    reader = Reader(descriptor)
    run = RunConsole(log, FACTS, stream=stream)
    run.say(text)
    run.close()
    stream.close()
    lines = reader.text().split("\n")
    assert all(line.isprintable() for line in lines)
    assert len(lines) == text.count("\n") + 2
    assert without_times(log).split("\n") == lines


def test_an_ascii_stream_gets_escapes(log: Path) -> None:
    descriptor, stream = open_pipe("ascii")
    reader = Reader(descriptor)
    run = RunConsole(log, FACTS, stream=stream)
    run.say("naïve 猫")
    run.close()
    stream.close()
    assert reader.text() == "na\\xefve \\u732b\n"
    assert "naïve 猫" in log.read_text(encoding="utf-8")


def test_the_log_is_appended_to(log: Path) -> None:
    for text in ("first start", "second start"):
        descriptor, stream = open_pipe()
        reader = Reader(descriptor)
        run = RunConsole(log, FACTS, stream=stream)
        run.say(text)
        run.close()
        stream.close()
        assert reader.text() == f"{text}\n"
    assert without_times(log) == "first start\nsecond start\n"


def test_a_disk_that_is_full_for_a_moment_loses_its_lines_only(log: Path, tmp_path: Path) -> None:
    """As where ``train`` prints to the output file of a job."""
    printed = tmp_path / "job.out"
    with printed.open("w", encoding="utf-8") as stream:
        run = RunConsole(log, FACTS, stream=stream)
        run.say("before")
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, unlimited[1]))
        try:
            run.say("while it is full")
            run.say("while it is still full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        run.say("after")
        run.close()
    assert without_times(log) == "before\nafter\n"
    said = printed.read_text()
    assert said.endswith("after\n")
    assert said.count("lines are missing in it until") == 1


@pytest.mark.parametrize("where", ["pipe", "terminal"])
def test_a_reader_that_goes_away_does_not_end_the_run(log: Path, where: str) -> None:
    outside, stream = open_pipe() if where == "pipe" else open_terminal()
    own = sys.stdout, sys.stderr
    run = RunConsole(log, FACTS, stream=stream)
    run.say("heard")
    run.progress([train(1), train(2), train(3)])  # draws: the end of an epoch always does
    os.close(outside)
    tell_everything(run)
    assert (sys.stdout, sys.stderr) == own
    with contextlib.suppress(OSError):
        stream.close()
    assert "for the log alone" in log.read_text(), "the log has everything"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_lines_fit_the_terminal(log: Path, columns: int) -> None:
    descriptor, stream = open_terminal(columns)
    reader = Reader(descriptor)
    run = RunConsole(log, FACTS, stream=stream)
    run.at_step(0)
    with run.evaluating("val", 100) as advance:
        advance(100)
    run.say("one word after the other " * 8)
    command = "  cifar-dist train demo " + "--optim.lr 0.1 " * 8 + "--run.name a"
    run.say_command("resume with:", command.strip())
    tell_everything(run)
    stream.close()
    said = reader.text()
    assert "first step" in said, "a bar before the first step is measured"
    assert "evaluating val" in said
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    lines = [line for line in re.split(r"[\r\n]+", plain) if line != command]
    assert command in plain.splitlines(), "a command is never broken"
    assert max(map(len, lines)) <= min(columns - 1, 79)
    header = next(line for line in lines if "val loss" in line)
    assert ("images/s" in header) == ("train loss" in header and columns > 60)
    assert "val acc" in header
    screen = Screen(columns)
    screen.write(said)
    assert not [line for line in screen.lines if "━" in line], "no bar is left behind"


@pytest.mark.parametrize("narrow", [60, 40])
def test_bars_survive_a_terminal_that_becomes_narrower_and_wider(log: Path, narrow: int) -> None:
    descriptor, stream = open_terminal(120)
    screen, run = Screen(120), RunConsole(log, FACTS, stream=stream)

    def show(step: int) -> None:
        """Draw the bars, to the screen and at once."""
        run._drawn = 0.0
        run.at_step(step)
        os.write(stream.fileno(), b"\x1b[0m<shown>")
        seen = ""
        while "<shown>" not in seen:
            seen += os.read(descriptor, 65536).decode()
        screen.write(seen.replace("<shown>", ""))

    run.say("before")
    show(1)
    for columns in (narrow, 100, narrow):
        resize(stream.fileno(), columns)
        screen.resize(columns)
        show(2)
        assert [line.split()[0] for line in screen.lines if line] == ["before", "epoch", "run"], "\n".join(screen.lines)
        assert max(map(len, screen.lines)) < columns
    os.close(descriptor)
    run.close()
    with contextlib.suppress(OSError):
        stream.close()


def test_a_ctrl_c_is_acknowledged_above_the_bars(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor, stream = open_terminal(80)
    monkeypatch.setattr(terminal, "_file", stream.fileno)
    reader, run = Reader(descriptor), RunConsole(log, FACTS, stream=stream)
    run.at_step(1)
    terminal.say_above_bars(terminal.STOPPING)
    run._drawn = 0.0
    run.at_step(2)
    os.write(stream.fileno(), b"\r\x1b[Ka process above says it\r\n")
    terminal.let_line_pass()
    run.say("interrupted")
    run.close()
    stream.close()
    screen = Screen(80)
    screen.write(reader.text())
    assert [line for line in screen.lines if line] == [terminal.STOPPING, "a process above says it", "interrupted"]
