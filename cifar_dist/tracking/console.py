"""The console output of a run: live bars at a terminal, plain lines in a pipe, the same lines in ``training.log``.

Only rank 0 has a console. Text is never interpreted as markup, and control characters are escaped. If the terminal
disappears, the output stops and the run continues.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from cifar_dist.errors import StorageError, printable
from cifar_dist.formatting import clock
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.table import EpochRow
from cifar_dist.tracking.timeline import utc

PLAIN_INTERVAL = 10.0  # seconds between progress lines if no bar can be drawn
_LIVE_INTERVAL = 0.1
_HEADER = f"{'epoch':>8} {'train loss':>11} {'acc':>8} {'val loss':>9} {'acc':>8} {'lr':>9} {'images/s':>9} {'time':>8}"


class RunConsole:
    """The console of one process of a run, and its log.

    Args:
        log: ``training.log``; appended to, until it can no longer be written.
        facts: steps and epochs of the run.
        stream: where to print; standard output by default.
    """

    def __init__(self, log: Path, facts: RunFacts, *, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._log: FileIO | None = log.open("ab", buffering=0)
        self._facts = facts
        self._step = 0
        self._pace_from: tuple[int, float] | None = (
            None  # (step, time) of the first records, which include compilation and warm-up
        )
        self._said_progress = time.monotonic()
        self._drawn = 0.0
        self._header_due = True
        self._gone = False
        self._rich: Console | None = None
        self._live: Progress | None = None
        # Ask the stream, not rich: with FORCE_COLOR, rich would treat a pipe as a terminal.
        if self._stream.isatty():
            self._rich = Console(file=self._stream, highlight=False, markup=False, emoji=False)
            if self._rich.is_dumb_terminal:
                self._rich = None

    def banner(self, title: str, lines: Sequence[tuple[str, str]]) -> None:
        """Print the title of the run and its (label, text) lines."""
        texts = [f"{what:<6} {printable(text)}" for what, text in lines]
        title = printable(title)
        self._write_log([title, *texts])
        if self._rich:
            self._print(Panel(Text("\n".join(texts)), title=Text(title, style="bold"), title_align="left"))
        else:
            self._write_plain([title, *texts])

    def say(self, text: str) -> None:
        self._say(text, "")

    def note(self, text: str) -> None:
        """Write text to training.log only."""
        self._write_log(_lines(text))

    def warn(self, text: str) -> None:
        self._say(f"warning: {text}", "yellow")

    def progress(self, records: Sequence[Record]) -> None:
        """Show the last of these training records and their mean throughput."""
        if not records:
            return
        now = time.monotonic()
        self._step = records[-1].step
        if self._pace_from is None:  # compilation and warm-up are behind the first look
            self._pace_from = (self._step, now)
        seconds = sum(record.seconds for record in records)
        rate = sum(record.samples for record in records) / seconds if seconds > 0 else math.nan
        epoch_ends = self._step % self._facts.steps_per_epoch == 0
        if self._rich and (epoch_ends or now - self._drawn >= _LIVE_INTERVAL):
            self._drawn = now
            self._guard(lambda: self._draw(records[-1], rate, now))
        if now - self._said_progress >= PLAIN_INTERVAL:
            self._said_progress = now
            text = f"{self._where(records[-1])}  {self._measures(records[-1])}  {self._pace(rate, now)}"
            self._write_log([text])
            if not self._rich:
                self._write_plain([text])

    def epoch(self, row: EpochRow, best: bool) -> None:
        """Print the permanent line of a finished epoch."""
        if self._header_due:
            self._header_due = False
            self._say(_HEADER, "dim")
        line = (
            f"{f'{row.epoch + 1}/{self._facts.epochs}':>8} {_number(row.train_loss):>11} "
            f"{_percent(row.train_accuracy):>8} {_number(row.val_loss):>9} {_percent(row.val_accuracy):>8} "
            f"{row.lr:>9.3g} {_count(row.images_per_second):>9} {clock(row.seconds):>8}"
        )
        self._say(line + (" best" if best else ""), "bold green" if best else "")

    def close(self) -> None:
        if self._live:
            self._gone = False  # stop even without a reader, because it restores sys.stdout and sys.stderr
            self._guard(self._live.stop)
            self._live = None
        if self._log:
            self._log.close()

    def _where(self, record: Record) -> str:
        return f"epoch {record.epoch + 1}/{self._facts.epochs} step {record.step}/{self._facts.steps}"

    @staticmethod
    def _measures(record: Record) -> str:
        lr = "" if record.lr is None else f"  lr {record.lr:.3g}"
        return f"loss {_number(record.loss)}  acc {_percent(record.accuracy)}{lr}"

    def _pace(self, rate: float, now: float) -> str:
        assert self._pace_from is not None
        first_step, start = self._pace_from
        done = self._step - first_step
        left = (now - start) / done * (self._facts.steps - self._step) if done else math.nan
        return f"{_count(rate)} images/s  {clock(left)} left"

    def _draw(self, record: Record, rate: float, now: float) -> None:
        in_epoch = record.step - record.epoch * self._facts.steps_per_epoch
        if not self._live:
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                console=self._rich,
                auto_refresh=False,  # no thread, which signals and forks of a training job would disturb
                transient=True,
                expand=True,
                redirect_stderr=sys.stderr.isatty(),  # else `2> FILE` would miss what is printed while a bar is shown
            )
            self._live.add_task("", total=self._facts.steps_per_epoch, text="")
            self._live.add_task("run", total=self._facts.steps, text="")
            self._live.start()
        epoch, run = self._live.task_ids
        description = f"epoch {record.epoch + 1}/{self._facts.epochs}"
        self._live.update(epoch, description=description, completed=in_epoch, text=self._measures(record))
        self._live.update(run, completed=record.step, text=self._pace(rate, now))
        self._live.refresh()

    def _say(self, text: str, style: str) -> None:
        lines = _lines(text)
        self._write_log(lines)
        if self._rich:
            self._print(Text("\n".join(lines), style=style))
        else:
            self._write_plain(lines)

    def _print(self, what: Text | Panel) -> None:
        console = self._rich
        assert console is not None
        self._guard(lambda: console.print(what))

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
            name, self._log = self._log.name, None
            self.warn(f"{StorageError.of(error, name)}; the lines that follow are not in it")

    def _guard(self, output: Callable[[], None]) -> None:
        """Print unless the reader is gone (a closed pipe, a lost terminal); training continues without one."""
        if self._gone:
            return
        try:
            output()
        except (OSError, ValueError):
            self._gone = True


def _lines(text: str) -> list[str]:
    """Split text into printable lines, so that each has its own time in the log."""
    return [printable(line) for line in text.split("\n")]


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %" if math.isfinite(fraction) else "-"


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "-"
