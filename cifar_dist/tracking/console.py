"""The console output of a run: live bars at a terminal, plain lines in a pipe, the same lines in ``training.log``.

Only rank 0 has a console. Text is never interpreted as markup, and control characters are escaped. If the terminal
disappears, the output stops and the run continues.
"""

from __future__ import annotations

import contextlib
import errno
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from cifar_dist.errors import StorageError, printable
from cifar_dist.formatting import clock, counted, loss_figure, percent
from cifar_dist.terminal import screen
from cifar_dist.terminal.progress import Advance
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.table import EpochRow
from cifar_dist.tracking.timeline import utc

PLAIN_INTERVAL = 10.0  # seconds between progress lines if no bar can be drawn
_LIVE_INTERVAL = 0.1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an output file, which may have space again later
_BARS = 2  # rows of the live display

# Columns of an epoch's line with their widths. Where the terminal is narrower, the ones in _DISPENSABLE are left out.
_COLUMNS = {"train loss": 10, "train acc": 9, "val loss": 8, "val acc": 8, "lr": 8, "images/s": 8, "time": 7}
_DISPENSABLE = ("lr", "images/s", "train loss", "time")


class RunConsole:
    """The console of one process of a run, and its log.

    Args:
        log: ``training.log``; appended to; lines that cannot be written are left out.
        facts: steps and epochs of the run.
        stream: where to print; standard output by default.
    """

    def __init__(self, log: Path, facts: RunFacts, *, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._log: FileIO | None = log.open("ab", buffering=0)
        self._log_lacks_lines = False
        self._facts = facts
        self._step = 0
        self._last: Record | None = None
        self._rate = math.nan
        self._evaluation: tuple[str, int, int] | None = None  # split, samples done, samples
        # Step and time of the first records, behind which compilation and warm-up are.
        self._pace_from: tuple[int, float] | None = None
        self._said_progress = time.monotonic()
        self._drawn = 0.0
        self._header: tuple[str, ...] = ()  # the columns of the last header
        self._width = screen.WIDEST  # of the bars as they were drawn
        self._gone = False
        self._rich: Console | None = None
        self._live: Progress | None = None
        # Ask the stream, not rich: with FORCE_COLOR, rich would treat a pipe as a terminal.
        if screen.is_terminal(self._stream):
            self._rich = Console(file=self._stream, highlight=False, markup=False, emoji=False)

    def banner(self, title: str, lines: Sequence[tuple[str, str]]) -> None:
        """Print the title of the run and its (label, text) lines."""
        texts = [f"{what:<6} {printable(text)}" for what, text in lines]
        title = printable(title)
        self._write_log([title, *texts])
        if self._rich:
            table = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 1))
            for what, text in lines:
                table.add_row(Text(what), Text(printable(text)))
            self._print(Panel(table, title=Text(title, style="bold"), title_align="left"))
        else:
            self._write_plain([title, *texts])

    def say(self, text: str) -> None:
        self._say(text, "")

    def say_command(self, text: str, command: str) -> None:
        """Print a command that can be copied: on a line of its own, however long, without a break."""
        self._say(text, "")
        self._say(f"  {command}", "bold", whole=True)

    def note(self, text: str) -> None:
        """Write text to training.log only."""
        self._write_log(_lines(text))

    def warn(self, text: str) -> None:
        self._say(f"warning: {text}", "yellow")

    def at_step(self, step: int) -> None:
        """Move the bars to a step that is done but not measured yet; costs a look at the clock."""
        self._step = step
        now = time.monotonic()
        if self._rich and now - self._drawn >= _LIVE_INTERVAL:
            self._draw(now)

    @contextlib.contextmanager
    def evaluating(self, split: str, samples: int) -> Iterator[Advance]:
        """Show the progress of an evaluation in place of the epoch's."""
        self._evaluation, done = (split, 0, samples), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._evaluation = (split, done, samples)
            now = time.monotonic()
            if self._rich and (done == samples or now - self._drawn >= _LIVE_INTERVAL):
                self._draw(now)
            elif not self._rich and now - self._said_progress >= PLAIN_INTERVAL:
                self._said_progress = now
                self._write_plain([f"evaluating {split}: {done:,} of {counted(samples, 'image')}"])

        try:
            yield advance
        finally:
            self._evaluation = None

    def progress(self, records: Sequence[Record]) -> None:
        """Show the last of these training records and their mean throughput."""
        if not records:
            return
        now = time.monotonic()
        self._last = records[-1]
        self._step = self._last.step
        if self._pace_from is None:
            self._pace_from = (self._step, now)
        seconds = sum(record.seconds for record in records)
        self._rate = sum(record.samples for record in records) / seconds if seconds > 0 else math.nan
        epoch_ends = self._step % self._facts.steps_per_epoch == 0
        if self._rich and (epoch_ends or now - self._drawn >= _LIVE_INTERVAL):
            self._draw(now)
        if now - self._said_progress >= PLAIN_INTERVAL:
            self._said_progress = now
            epoch, steps = f"{self._last.epoch + 1}/{self._facts.epochs}", f"{self._step}/{self._facts.steps}"
            text = f"epoch {epoch} step {steps}  {_measures(self._last)}  {self._pace(now)}"
            self._write_log([text])
            if not self._rich:
                self._write_plain([text])

    def epoch(self, row: EpochRow, best: bool) -> None:
        """Print the permanent line of a finished epoch."""
        epochs = self._facts.epochs
        first = max(len("epoch"), len(f"{epochs}/{epochs}"))
        names = _columns_that_fit(self._fit_width() - first - len(" best"))
        if names != self._header:  # also where the terminal has become wider or narrower
            self._header = names
            self._say(" ".join([f"{'epoch':>{first}}", *(f"{name:>{_COLUMNS[name]}}" for name in names)]), "dim")
        cells = {
            "train loss": _number(row.train_loss),
            "train acc": _percent(row.train_accuracy),
            "val loss": _number(row.val_loss),
            "val acc": _percent(row.val_accuracy),
            "lr": f"{row.lr:.3g}" if math.isfinite(row.lr) else "-",
            "images/s": _count(row.images_per_second),
            "time": clock(row.seconds),
        }
        line = [f"{f'{row.epoch + 1}/{epochs}':>{first}}", *(f"{cells[name]:>{_COLUMNS[name]}}" for name in names)]
        self._say(" ".join([*line, *(["best"] if best else [])]), "bold green" if best else "")

    def close(self) -> None:
        if self._live:
            self._gone = False  # stop even without a reader, because it restores sys.stdout and sys.stderr
            self._guard(self._live.stop)
            self._live = None
            screen.set_rows(1)
        if self._log:
            self._log.close()

    def _pace(self, now: float) -> str:
        if self._pace_from is None:
            return ""
        first_step, start = self._pace_from
        done = self._step - first_step
        left = (now - start) / done * (self._facts.steps - self._step) if done else math.nan
        return f"{_count(self._rate)} images/s  {clock(left)} left"

    def _draw(self, now: float) -> None:
        """Draw the bars, or move them."""
        self._drawn = now
        self._guard(lambda: self._draw_bars(now))

    def _draw_bars(self, now: float) -> None:
        assert self._rich is not None
        if not self._live:
            self._live = self._start_bars(self._rich)
        self._fit_bars(self._rich)
        per_epoch = self._facts.steps_per_epoch
        epoch = max(self._step - 1, 0) // per_epoch
        what, done, total = f"epoch {epoch + 1}/{self._facts.epochs}", self._step - epoch * per_epoch, per_epoch
        text = _measures(self._last, short=self._width < 72) if self._last else "first step"
        if self._evaluation:
            (split, done, total), text = self._evaluation, ""
            what = f"evaluating {split}"
        bar, run = self._live.task_ids
        self._live.update(bar, description=what, completed=done, total=total, text=text)
        self._live.update(run, completed=self._step, text=self._pace(now))
        self._live.refresh()

    def _start_bars(self, console: Console) -> Progress:
        self._width = console.width = screen.columns(self._stream, spare=screen.ROOM_FOR_KEYS)
        whole = len(f"{self._facts.steps}/{self._facts.steps}")
        live = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=whole)),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            auto_refresh=False,  # no thread, which signals and forks of a training job would disturb
            transient=True,
            expand=True,
            redirect_stderr=sys.stderr.isatty(),  # else `2> FILE` would miss what is printed while a bar is shown
        )
        live.add_task("", total=self._facts.steps_per_epoch, text="")
        live.add_task("run", total=self._facts.steps, text="")
        live.start()
        console.show_cursor()  # which a process that is stopped or killed could not give back
        screen.set_rows(_BARS)
        return live

    def _fit_bars(self, console: Console) -> None:
        """Adapt to the terminal's width; bars that a narrower one has broken into several rows are cleared."""
        width = screen.columns(self._stream, spare=screen.ROOM_FOR_KEYS)
        if width < self._width:
            rows = _BARS * -(-self._width // (width + screen.ROOM_FOR_KEYS))
            self._stream.write(screen.make_room(rows) + "\n" * (_BARS - 1))
        self._width = console.width = width

    def _fit_width(self) -> int:
        return screen.columns(self._stream) if self._rich else screen.WIDEST

    def _say(self, text: str, style: str, *, whole: bool = False) -> None:
        lines = _lines(text)
        self._write_log(lines)
        if self._rich:
            width = self._fit_width()
            self._print(Text("\n".join(line if whole else screen.fold(line, width) for line in lines), style=style))
        else:
            self._write_plain(lines)

    def _print(self, what: Text | Panel) -> None:
        console = self._rich
        assert console is not None
        if self._live:
            self._fit_bars(console)
        else:
            console.width = self._fit_width()
        self._guard(lambda: console.print(what, soft_wrap=isinstance(what, Text)))

    def _write_plain(self, lines: Sequence[str]) -> None:
        encoding = self._stream.encoding or "utf-8"
        safe = "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding)
        self._guard(lambda: print(safe, file=self._stream, flush=True))

    def _write_log(self, lines: Sequence[str]) -> None:
        if self._log is None:
            return
        stamp = utc()
        text = "".join(f"{stamp} {line}\n" for line in lines)
        try:
            self._log.write(text.encode("utf-8", "backslashreplace"))
        except OSError as error:  # it copies what is printed, so training continues without it
            if not self._log_lacks_lines:
                self._log_lacks_lines = True
                self.warn(f"{StorageError.of(error, self._log.name)}; lines are missing in it until it can be written")

    def _guard(self, output: Callable[[], None]) -> None:
        """Print unless the reader is gone (a closed pipe, a lost terminal); training continues without one."""
        if self._gone:
            return
        try:
            output()
        except (OSError, ValueError) as error:
            self._gone = not (isinstance(error, OSError) and error.errno in _FULL)


def _lines(text: str) -> list[str]:
    """Split text into printable lines, so that each has its own time in the log."""
    return [printable(line) for line in text.split("\n")]


def _columns_that_fit(width: int) -> tuple[str, ...]:
    """Return the columns of an epoch's line, each with the space before it, for so many characters."""
    names = tuple(_COLUMNS)
    for name in _DISPENSABLE:
        if sum(_COLUMNS[kept] + 1 for kept in names) > width:
            names = tuple(kept for kept in names if kept != name)
    return names


def _measures(record: Record, *, short: bool = False) -> str:
    lr = "" if record.lr is None or short else f"  lr {record.lr:.3g}"
    return f"loss {_number(record.loss)}  acc {_percent(record.accuracy)}{lr}"


def _number(value: float) -> str:
    return loss_figure(value) if math.isfinite(value) else "-"


def _percent(fraction: float) -> str:
    return percent(fraction) if math.isfinite(fraction) else "-"


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "-"
