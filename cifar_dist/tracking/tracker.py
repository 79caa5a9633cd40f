"""The object to which a trainer reports: it writes the run folder first, then updates the mirrors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Literal

from cifar_dist.config import Config
from cifar_dist.distributed.stop_signals import JOINED
from cifar_dist.errors import StorageError
from cifar_dist.launch.launched import will_restart
from cifar_dist.launch.typed_command import resume_command
from cifar_dist.run_folder import RunFolder
from cifar_dist.terminal.progress import Advance, silent
from cifar_dist.tracking import metrics, timeline
from cifar_dist.tracking.console import RunConsole
from cifar_dist.tracking.environment import describe_numerics, write_environment
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.lost_records import restore_lost
from cifar_dist.tracking.metrics import MetricsLog, Record
from cifar_dist.tracking.mirrors import MakeMirror, Mirrors
from cifar_dist.tracking.table import EpochTable
from cifar_dist.tracking.timeline import Event, Status
from cifar_dist.tracking.usage import Usage, total

_SHORT: Final = 0.05  # seconds: a write of metrics.csv that takes longer is followed by a rest
_REST: Final = 20  # times as long as it took beyond that


class AnyTracker:
    """The tracker interface, on every rank; each method does nothing unless a subclass overrides it."""

    def train_steps(self, records: Sequence[Record]) -> None:
        """Record the training steps since the last call, oldest first. Each step is passed exactly once."""

    def at_step(self, step: int) -> None:
        """Show that a step is done, before it is measured."""

    def evaluating(self, split: str, samples: int) -> AbstractContextManager[Advance]:
        """Show the progress of an evaluation."""
        return silent(samples)

    def evaluation(self, record: Record, best: bool) -> None:
        """Record a pass over another split; ``best``: whether it has the highest validation accuracy so far."""

    def evaluation_without_record(self, split: str, usage: Usage) -> None:
        """Count what an evaluation used of which no record is kept, so that no time of the run is left out."""

    def say(self, text: str) -> None:
        """Print a line."""

    def warn(self, text: str) -> None:
        """Print a problem that does not stop the run."""

    def sync(self) -> None:
        """Flush the metrics to the disk; called before a checkpoint is written."""

    def checkpoint(self, step: int, path: Path) -> None:
        """Record that a checkpoint is complete."""

    def finish(self, status: Status, reason: str = "", *, is_resumable: bool = False) -> None:
        """Record that the process stops training. Called whatever happened, because it restores the terminal.

        Args:
            status: how it ends.
            reason: why.
            is_resumable: whether a run that failed may succeed if it is resumed as it is; it says how.

        Raises:
            OSError: a file of the run cannot be written; not if the status is ``failed``.
        """


class Tracker(AnyTracker):
    """Rank 0's tracker: metrics.jsonl first, then metrics.csv, training.log, the console and the mirrors.

    Args:
        folder: the run folder; must exist.
        config: the resolved config.
        facts: of this process.
        resume_step: optimizer steps in the checkpoint that this process resumes from; 0 starts a new run. Metrics
            after it are dropped, because those steps are repeated.
        resume_epoch: epochs evaluated before that checkpoint; see :meth:`MetricsLog.cut`.
        resume_accuracy: the last validation accuracy before it; None before the first evaluation.
        mirrors: factory of each mirror, by name.

    Raises:
        UserError: the metrics.jsonl of an earlier process is damaged.
        OSError: the run folder cannot be written.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        *,
        facts: RunFacts,
        resume_step: int,
        resume_epoch: int | None = None,
        resume_accuracy: float | None = None,
        mirrors: Mapping[str, MakeMirror] | None = None,
    ) -> None:
        self._folder = folder
        self._facts = facts
        self._continues_unwritten = config.checkpoint.on_error == "warn"
        self._reported: set[str] = set()
        self._step = resume_step
        self._open_epoch: int | None = None  # has training records but no line on the console yet
        self._table_due = 0.0  # not before, by the clock of time.monotonic
        self._metrics = MetricsLog(folder.metrics)
        last_sign = folder.metrics.stat().st_mtime
        changed = metrics.difference(folder.metrics) == "changed"
        last_step = self._metrics.cut(resume_step, resume_epoch)
        lost = restore_lost(folder.metrics, resume_step, facts.steps_per_epoch, resume_accuracy)
        self._metrics.reopen()
        history = metrics.read(folder.metrics)
        self._table = EpochTable(history)
        self._usages = [record.usage for record in history if record.usage]
        self._table.write(folder.metrics_csv)
        write_environment(folder.environment, facts)
        self._console = RunConsole(folder.log, facts)
        resumed = [("resumed", f"after step {resume_step:,} of {facts.steps:,}")] if resume_step else []
        self._console.banner(folder.name, [*facts.lines(), ("folder", str(folder.path)), *resumed])
        self._note_kill(last_step, last_sign)
        if lost:
            self.warn(lost)
        if changed:
            self.warn(f"{folder.metrics} is not what this run wrote: a value in it was changed; restore it if you can")
        kind: Literal["resumed", "started"] = "resumed" if resume_step else "started"
        count = last_step - resume_step
        again = "" if not count else "1 step is repeated" if count == 1 else f"{count:,} steps are repeated"
        where = f"{facts.wrapper}, {facts.device}"
        begin = Event(
            timeline.utc(),
            kind,
            resume_step,
            facts.processes,
            where,
            again,
            numerics=describe_numerics(facts.device),
            threads=facts.threads,
            compile=config.train.compile,
            precision=facts.precision,
        )
        timeline.append(folder.timeline, begin)
        if again:
            self.say(f"resumed before the end of the metrics: {again}")
        say_command = self._console.say_command
        self._mirrors = Mirrors(mirrors or {}, folder.path, config, facts, self.say, say_command, self.warn)
        self._mirrors.start(history)

    def train_steps(self, records: Sequence[Record]) -> None:
        if not records:
            return
        steps = [record.step for record in records]
        assert steps == list(range(self._step + 1, self._step + 1 + len(steps))), f"after {self._step} came {steps}"
        self._step = steps[-1]
        self._write(lambda: self._metrics.append(records))
        self._add(records)
        for epoch in sorted({record.epoch for record in records}):
            if self._open_epoch is not None and epoch != self._open_epoch:
                self._end_epoch(self._open_epoch, best=False)
            self._open_epoch = epoch
        self._console.progress(records)
        self._mirrors.train_steps(records)

    def at_step(self, step: int) -> None:
        self._console.at_step(step)

    def evaluating(self, split: str, samples: int) -> AbstractContextManager[Advance]:
        if split != "val" and self._open_epoch is not None:  # the line of the last epoch precedes its result
            self._end_epoch(self._open_epoch, best=False)
        return self._console.evaluating(split, samples)

    def evaluation(self, record: Record, best: bool) -> None:
        self._write(lambda: self._metrics.append([record]))
        self._add([record])
        if record.split == "val":
            self._end_epoch(record.epoch, best)
        else:
            self._table.write(self._folder.metrics_csv)
        self._mirrors.evaluation(record, best)

    def evaluation_without_record(self, split: str, usage: Usage) -> None:
        self._add_usage(usage, f"the evaluation on {split}")

    def say(self, text: str) -> None:
        self._console.say(text)

    def warn(self, text: str) -> None:
        self._console.warn(text)

    def sync(self) -> None:
        self._metrics.sync()

    def checkpoint(self, step: int, path: Path) -> None:
        self._console.note(f"checkpoint of step {step:,}: {path}")

    def finish(self, status: Status, reason: str = "", *, is_resumable: bool = False) -> None:
        end = Event(timeline.utc(), status, self._step, note=reason)
        failures: list[OSError] = []
        try:
            if self._open_epoch is not None and status == "finished":
                self._end_epoch(self._open_epoch, best=False)
            writes = (
                self._metrics.close,
                lambda: self._table.write(self._folder.metrics_csv),
                lambda: timeline.append(self._folder.timeline, end),
            )
            for write in writes if self._folder.is_where_it_was() else ():
                try:
                    write()
                except OSError as error:
                    failures.append(error)
            self._mirrors.close(status)
            after = f"after step {self._step:,} of {self._facts.steps:,}"
            if (used := total(self._usages)) and status != "failed":
                self.say(f"time: {used.in_words()}")
            if reason == JOINED:
                self.say(f"saved {after} for {reason}; the run continues with it")
            else:
                self.say(f"{status} {after}" + (f": {reason}" if reason else ""))
            for failure in failures:
                self.warn(str(StorageError.of(failure)))
            if status == "interrupted" and reason != JOINED and (command := resume_command(self._folder.path)):
                self._console.say_command("resume with:", command)
            if is_resumable:
                self._say_what_is_saved()
        finally:
            self._console.close()
        if failures and status != "failed":  # the cause of a failure is raised already
            raise failures[0]

    def _say_what_is_saved(self) -> None:
        try:
            newest = self._folder.newest_checkpoint()
        except OSError as error:  # of the fault that ends the run
            self.say(f"whether a checkpoint was saved is unknown: {StorageError.of(error, self._folder.checkpoints)}")
            return
        command = "" if will_restart() or not newest else resume_command(self._folder.path)
        if command:
            self._console.say_command(f"{newest} is saved; resume with:", command)
        else:
            self.say(f"{newest} is saved" if newest else "no checkpoint was saved")

    def _add(self, records: Sequence[Record]) -> None:
        self._table.add(records)
        for record in records:
            if record.usage:
                trained = record.split in ("train", "val")
                what = f"epoch {record.epoch + 1}" if trained else f"the evaluation on {record.split}"
                self._add_usage(record.usage, what)

    def _add_usage(self, usage: Usage, what: str) -> None:
        self._usages.append(usage)
        self._console.note(f"time of {what}: {usage.in_words()}")

    def _end_epoch(self, epoch: int, best: bool) -> None:
        if (begin := time.monotonic()) >= self._table_due:
            self._write(lambda: self._table.write(self._folder.metrics_csv))
            self._table_due = begin + _REST * (time.monotonic() - begin - _SHORT)  # it grows with the epochs
        self._console.epoch(self._table.row(epoch), best)
        self._open_epoch = None

    def _write(self, work: Callable[[], None]) -> None:
        """Write to the run folder. Unless ``checkpoint.on_error`` says stop, training continues if that fails.

        Nothing is lost: records that cannot be written are written with the next ones, and before any checkpoint.
        """
        try:
            work()
        except OSError as error:
            if not self._continues_unwritten:
                raise
            what = str(StorageError.of(error))
            if what not in self._reported:
                self._reported.add(what)
                self.warn(f"{what}; training continues, and tries again")

    def _note_kill(self, step: int, timestamp: float) -> None:
        """Record in the timeline that an earlier process was killed before it could record its own end."""
        events = timeline.read(self._folder.timeline)
        last = timeline.last_of_a_process(events)
        if last and timeline.starts([last]):
            killed = Event(
                timeline.utc(timestamp),
                "killed",
                step,
                note="ended without a record; the time is that of its last metrics",
            )
            timeline.append(self._folder.timeline, killed)
            self.say(f"the last process was killed after step {step:,}, at about {killed.time}")


class SilentTracker(AnyTracker):
    """The tracker of all other ranks, which does nothing."""
