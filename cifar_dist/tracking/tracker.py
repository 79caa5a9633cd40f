"""The object to which a trainer reports: it writes the run folder first, then updates the mirrors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from cifar_dist.config import Config
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import metrics, timeline
from cifar_dist.tracking.console import RunConsole
from cifar_dist.tracking.environment import write_environment
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import MetricsLog, Record
from cifar_dist.tracking.mirrors import MakeMirror, Mirrors
from cifar_dist.tracking.table import EpochTable
from cifar_dist.tracking.timeline import Event, Status


class AnyTracker(Protocol):
    """The tracker interface, on every rank."""

    def train_steps(self, records: Sequence[Record]) -> None:
        """Record the training steps since the last call, oldest first. Each step is passed exactly once."""

    def evaluation(self, record: Record, best: bool) -> None:
        """Record a pass over another split; ``best``: whether it has the highest validation accuracy so far."""

    def say(self, text: str) -> None:
        """Print a line."""

    def warn(self, text: str) -> None:
        """Print a problem that does not stop the run."""

    def sync(self) -> None:
        """Flush the metrics to the disk; called before a checkpoint is written."""

    def checkpoint(self, step: int, path: Path) -> None:
        """Record that a checkpoint is complete."""

    def finish(self, status: Status, reason: str = "") -> None:
        """Record that the process stops training. Called whatever happened, because it restores the terminal."""


class Tracker:
    """Rank 0's tracker: metrics.jsonl first, then metrics.csv, training.log, the console and the mirrors.

    Args:
        folder: the run folder; must exist.
        config: the resolved config.
        facts: of this process.
        resume_step: optimizer steps in the checkpoint that this process resumes from; 0 starts a new run. Metrics
            after it are dropped, because those steps are repeated.
        resume_epoch: epochs evaluated before that checkpoint; see :meth:`MetricsLog.cut`.
        mirrors: factory of each mirror, by name.

    Raises:
        UserError: the metrics.jsonl of an earlier process is damaged.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        *,
        facts: RunFacts,
        resume_step: int,
        resume_epoch: int | None = None,
        mirrors: Mapping[str, MakeMirror] | None = None,
    ) -> None:
        self._folder = folder
        self._facts = facts
        self._step = resume_step
        self._open_epoch: int | None = None  # has training records but no line on the console yet
        self._metrics = MetricsLog(folder.metrics)
        last_sign = folder.metrics.stat().st_mtime
        last_step = self._metrics.cut(resume_step, resume_epoch)
        history = metrics.read(folder.metrics)
        self._table = EpochTable(history)
        self._table.write(folder.metrics_csv)
        write_environment(folder.environment, facts)
        self._console = RunConsole(folder.log, facts)
        resumed = [("resumed", f"after step {resume_step:,} of {facts.steps:,}")] if resume_step else []
        self._console.banner(folder.name, [*facts.lines(), ("folder", str(folder.path)), *resumed])
        self._note_kill(last_step, last_sign)
        kind: Literal["resumed", "started"] = "resumed" if resume_step else "started"
        lost = last_step - resume_step
        again = "" if not lost else "1 step is repeated" if lost == 1 else f"{lost:,} steps are repeated"
        where = f"{facts.wrapper}, {facts.device}"
        timeline.append(folder.timeline, Event(timeline.utc(), kind, resume_step, facts.processes, where, again))
        if again:
            self.say(f"resumed before the end of the metrics: {again}")
        self._mirrors = Mirrors(mirrors or {}, folder.path, config, facts, self.warn)
        self._mirrors.start(history)

    def train_steps(self, records: Sequence[Record]) -> None:
        if not records:
            return
        steps = [record.step for record in records]
        assert steps == list(range(self._step + 1, self._step + 1 + len(steps))), f"after {self._step} came {steps}"
        self._step = steps[-1]
        self._metrics.append(records)
        self._table.add(records)
        for epoch in sorted({record.epoch for record in records}):
            if self._open_epoch is not None and epoch != self._open_epoch:
                self._end_epoch(self._open_epoch, best=False)
            self._open_epoch = epoch
        self._console.progress(records)
        self._mirrors.train_steps(records)

    def evaluation(self, record: Record, best: bool) -> None:
        self._metrics.append([record])
        self._table.add([record])
        if record.split == "val":
            self._end_epoch(record.epoch, best)
        else:
            self.say(
                f"{record.split}: accuracy {100 * record.accuracy:.2f} %, loss {record.loss:.4f}, "
                f"{record.samples:,} images"
            )
        self._mirrors.evaluation(record, best)

    def say(self, text: str) -> None:
        self._console.say(text)

    def warn(self, text: str) -> None:
        self._console.warn(text)

    def sync(self) -> None:
        self._metrics.sync()

    def checkpoint(self, step: int, path: Path) -> None:
        self._console.note(f"checkpoint of step {step:,}: {path}")

    def finish(self, status: Status, reason: str = "") -> None:
        try:
            if self._open_epoch is not None and status == "finished":
                self._end_epoch(self._open_epoch, best=False)
            self._metrics.close()
            self._table.write(self._folder.metrics_csv)
            timeline.append(self._folder.timeline, Event(timeline.utc(), status, self._step, note=reason))
            self._mirrors.close(status)
            after = f"after step {self._step:,} of {self._facts.steps:,}"
            self.say(f"{status} {after}" + (f": {reason}" if reason else ""))
        finally:
            self._console.close()

    def _end_epoch(self, epoch: int, best: bool) -> None:
        self._table.write(self._folder.metrics_csv)
        self._console.epoch(self._table.row(epoch), best)
        self._open_epoch = None

    def _note_kill(self, step: int, timestamp: float) -> None:
        """Record in the timeline that an earlier process was killed before it could record its own end."""
        events = timeline.read(self._folder.timeline)
        last = timeline.last_of_a_process(events)
        if last and last.kind in ("started", "resumed"):
            killed = Event(
                timeline.utc(timestamp),
                "killed",
                step,
                note="ended without a record; the time is that of its last metrics",
            )
            timeline.append(self._folder.timeline, killed)
            self.say(f"the last process was killed after step {step:,}, at about {killed.time}")


class SilentTracker:
    """The tracker of all other ranks, which does nothing."""

    def train_steps(self, records: Sequence[Record]) -> None: ...
    def evaluation(self, record: Record, best: bool) -> None: ...
    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def sync(self) -> None: ...
    def checkpoint(self, step: int, path: Path) -> None: ...
    def finish(self, status: Status, reason: str = "") -> None: ...
