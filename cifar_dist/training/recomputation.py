"""The training of a run, recomputed from one of its checkpoints on, and what to compare it with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from cifar_dist import checkpoint
from cifar_dist.config import Config
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.engine import Engine
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.opening import refuse_missing_data
from cifar_dist.step_folder import step_of
from cifar_dist.terminal.progress import Advance
from cifar_dist.tracking import timeline
from cifar_dist.tracking.metrics import Record, read
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepLog, StepMeasurements
from cifar_dist.training.setup import TrainingSetup, build_setup

_TAKEN_EVERY = 100  # steps after which their measurements leave the device


def same_numbers(one: Record, other: Record) -> bool:
    """Whether two records of a step are equal but for the time that it took, and what took it."""
    return not different_numbers(one, other)


def different_numbers(one: Record, other: Record) -> list[str]:
    """Name the fields in which two records of a step differ. Of one that has diverged, nan equals nan."""
    names = [field.name for field in fields(Record) if field.name not in ("seconds", "usage")]
    pairs = ((name, getattr(one, name), getattr(other, name)) for name in names)
    return [name for name, a, b in pairs if a != b and not (a != a and b != b)]


def recorded_steps(folder: RunFolder) -> dict[int, Record]:
    """Read the records of a run's training steps.

    Raises:
        UserError: metrics.jsonl is damaged, or holds none.
    """
    records = {record.step: record for record in read(folder.metrics) if record.split == "train"}
    if not records and folder.newest_checkpoint():
        raise UserError(f"{folder.metrics} has lost the records of all steps; restore it")
    if not records:
        raise UserError(f"{folder.path} has no training step yet; train first")
    return records


def starting_points(config: Config, folder: RunFolder) -> dict[int, Path | None]:
    """Return the steps from which a run can be recomputed, in order: 0, with new weights, and its intact checkpoints.

    What a branch has from before its beginning was trained with the settings of another run, so it does not count.

    Raises:
        UserError: a branch has lost the record of its beginning.
    """
    branched = beginning_of_branch(folder) if config.run.from_ else None
    points: dict[int, Path | None] = {} if branched else {0: None}
    for path in reversed(checkpoint.listing(folder.checkpoints)):
        step = step_of(path) or 0
        if branched and step < branched.step:
            continue
        try:
            checkpoint.verify(path)
        except checkpoint.CheckpointError:
            continue
        points[step] = path
    return points


def beginning_of_branch(folder: RunFolder) -> timeline.Event:
    """Return how a run branched from another one.

    Raises:
        UserError: the timeline has lost it.
    """
    events = [event for event in timeline.read(folder.timeline) if event.kind == "branched"]
    if not events:
        raise UserError(f"{folder.timeline} has lost the step at which this run branched; restore it")
    return events[-1]


def check_data(config: Config, folder: RunFolder) -> None:
    """Refuse a dataset that the run was not trained on.

    Raises:
        UserError: it does not exist, or is another one.
    """
    refuse_missing_data(folder, config.data.path, "--data")
    if difference := Manifest.load(config.data.path).difference(folder.read_manifest()):
        raise UserError(
            f"{config.data.path} is not the data that {folder.path} was trained on {difference}; name that with "
            "--data DIR"
        )


class Recomputation:
    """A run's training, recomputed from one of its checkpoints on. Construction and all methods are collective.

    Args:
        config: the run's.
        engine: this process in the job.
        start: the checkpoint to begin from; None for new weights.

    Attributes:
        first: the step that it begins from.
        setup, learner: the parts that train.
    """

    def __init__(self, config: Config, engine: Engine, start: Path | None) -> None:
        self._engine = engine
        loaded = engine.ranks.run_on_all(lambda: checkpoint.load(start) if start else None)
        self.first = loaded.state.step if loaded else 0
        self.setup: TrainingSetup = build_setup(config, engine.ranks)
        self.learner = Learner(self.setup, engine, loaded)

    def run(self, last: int, advance: Advance) -> tuple[list[Record], StepMeasurements]:
        """Train up to step ``last``; returns the records of all steps, and this process's measurements of the last.

        Args:
            last: above ``first``.
            advance: called after each step.

        Raises:
            StopRequested: a process was asked to stop.
        """
        log, records = StepLog(self._engine.ranks), list[Record]()
        for measured in self.learner.steps(self.first, last, self.setup.learning_rate):
            log.add(measured)
            advance(1)
            self._engine.poll()
            if measured.step % _TAKEN_EVERY == 0:
                records += log.take(wait=False)
                self.learner.clock.read()
        return records + log.take(), measured
