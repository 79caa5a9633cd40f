"""Recompute a step of a run from the nearest checkpoint before it: its loss, its images and its gradients.

A step is a function of (config, seed, step) and the weights before it, so nothing has to be recorded for it while the
run trains. On the run's processes, device and threads, the recomputed loss equals the recorded one to the last bit.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cifar_dist import checkpoint
from cifar_dist.config import Config
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.normalize import normalization_statistics
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.sharded_tensor import full_tensor
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.opening import refuse_missing_data
from cifar_dist.step_folder import step_of
from cifar_dist.terminal.progress import Advance, Show
from cifar_dist.tracking import timeline
from cifar_dist.tracking.environment import describe_numerics, read_facts, read_numerics
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import Record, read
from cifar_dist.tracking.timeline import Event
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepLog, StepMeasurements
from cifar_dist.training.setup import TrainingSetup, build_setup

_TAKEN_EVERY = 100  # steps after which their measurements leave the device
_OF_SETTINGS = ("threads", "train.compile")  # differences that no other launch of a replay avoids


@dataclass(frozen=True)
class ReplayedSamples:
    """The samples of a step, of all processes in the order of their ranks, without padding.

    Attributes:
        ids, ranks, labels, predicted: int64 [n].
        losses: float32 [n], in nats.
        images: float32 [n, c, h, w], as the network received them: augmented, mixed and normalised.
    """

    ids: Tensor
    ranks: Tensor
    labels: Tensor
    predicted: Tensor
    losses: Tensor
    images: Tensor


@dataclass(frozen=True)
class Replay:
    """A step, recomputed.

    Attributes:
        record: what was recomputed.
        recorded: what the run recorded.
        began: the step of the checkpoint that the recomputation began from; 0 for new weights.
        samples: all samples of the step.
        gradient_norms: L2 norm by parameter, after clipping; empty where the engine has freed the gradients.
        mean, std: with which images were normalised, per channel.
        classes: their names.
    """

    record: Record
    recorded: Record
    began: int
    samples: ReplayedSamples
    gradient_norms: dict[str, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether the run recorded exactly this."""
        return same_numbers(self.record, self.recorded)

    def pixels(self) -> Tensor:
        """The images as a viewer shows them: float32 [n, h, w, c] in [0, 1]."""
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std))
        return (self.samples.images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)

    def save(self, folder: Path) -> None:
        """Write ``replay.json``, ``samples.csv`` (highest loss first), ``gradients.csv`` and ``images.npz``."""
        samples = self.samples
        summary = {
            "equal": self.equal,
            "began_from_step": self.began,
            "replayed": json.loads(self.record.to_line()),
            "recorded": json.loads(self.recorded.to_line()),
        }
        (folder / "replay.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["id", "rank", "label", "predicted", "loss"])
            columns = (samples.ids, samples.ranks, samples.labels, samples.predicted, samples.losses)
            order = samples.losses.argsort(descending=True)
            rows.writerows(zip(*(column[order].tolist() for column in columns), strict=True))
        with (folder / "gradients.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["parameter", "norm"])
            rows.writerows(self.gradient_norms.items())
        arrays = {name: value.numpy() for name, value in vars(samples).items()}
        np.savez_compressed(folder / "images.npz", allow_pickle=False, **arrays)


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
    branched = _beginning(folder) if config.run.from_ else None
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


def _beginning(folder: RunFolder) -> timeline.Event:
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


@dataclass(frozen=True)
class JobDifferences:
    """Where a job differs from the run's, which may change the last bits of a loss.

    Attributes:
        lines: for the reader; empty where nothing is known to differ.
        avoidable: whether a job on the run's processes would have fewer.
    """

    lines: tuple[str, ...]
    avoidable: bool


def differences(folder: RunFolder, engine: Engine, first: int, last: int) -> JobDifferences:
    """Describe where this job differs from the run's.

    Args:
        folder: the run.
        engine: this process in this job.
        first, last: the steps done before and after what is recomputed.
    """
    facts = read_facts(folder.environment)
    if facts == RunFacts():
        unknown = "the run's environment.json is missing: its processes and device are not known"
        return JobDifferences((unknown,), avoidable=False)
    jobs = _jobs_of(folder, first, last)
    numerics = _numerics_lines(folder, engine, jobs)
    if not engine.rounds_by_processes:  # as if all had been trained on as many as these
        facts = replace(facts, processes=engine.ranks.world_size)
        jobs = [replace(job, processes=engine.ranks.world_size) for job in jobs]
    if len(kinds := _kinds(jobs)) > 1:
        several = " and then ".join(kinds)
        line = f"steps {first + 1} to {last} were trained on {several}, and no job recomputes all to the last digit"
        return JobDifferences((line, *numerics), avoidable=False)
    then = asdict(facts) | _settings(facts.threads, "")
    for job in jobs:
        then |= {"processes": job.processes, "wrapper": job.wrapper, "device": job.device}
    then |= {key: max(settings[key] for settings in map(_settings_of, jobs)) for key in _OF_SETTINGS if jobs}
    now = {
        "processes": engine.ranks.world_size,
        "wrapper": engine.description,
        "device": engine.device_name,
        "precision": engine.arithmetic,
        **_settings(torch.get_num_threads() if engine.ranks.device.type == "cpu" else 0, engine.compile_mode),
    }
    different = [key for key in now if then[key] and now[key] and then[key] != now[key]]
    lines = [f"{key}: {then[key]} then, {now[key]} now" for key in different]
    is_other_gpu = then["device"].startswith("cuda") and engine.device_name.startswith("cuda")
    avoidable = any(key not in _OF_SETTINGS and (key != "device" or not is_other_gpu) for key in different)
    return JobDifferences((*lines, *numerics), avoidable)


def _kinds(jobs: list[Event]) -> list[str]:
    """Describe the jobs by what differs among them, as far as it is known: in one text if nothing does."""
    varied = [key for key in _OF_SETTINGS if len({_settings_of(job)[key] for job in jobs} - {""}) > 1]
    kinds = []
    for job in jobs:
        settings = [f"{key}: {_settings_of(job)[key] or 'unknown'}" for key in varied]
        kinds.append(", ".join([f"{job.processes} x {job.where}", *settings]))
    return list(dict.fromkeys(kinds))


def _settings_of(job: Event) -> dict[str, str]:
    return _settings(job.threads, job.compile)


def _settings(threads: int, compile_mode: str) -> dict[str, str]:
    """Return what :data:`_OF_SETTINGS` names, each empty if it is unknown."""
    return dict(zip(_OF_SETTINGS, (str(threads or ""), compile_mode), strict=True))


def _numerics_lines(folder: RunFolder, engine: Engine, jobs: list[Event]) -> list[str]:
    """Say which versions, commits and CPUs of the jobs differ from those here, as far as the run has recorded them."""
    then = [job.numerics for job in jobs] if _starts(folder) else [read_numerics(folder.environment)]
    lines = []
    for key, now in describe_numerics(engine.device_name).items():
        before = dict.fromkeys(one[key] for one in then if key in one)
        if set(before) - {now}:
            lines.append(f"{key}: {' and '.join(before)} then, {now} now")
    return lines


def _jobs_of(folder: RunFolder, first: int, last: int) -> list[Event]:
    """Return the starts of the jobs that trained the steps from ``first`` to ``last``."""
    events = _starts(folder)
    ends = [*(event.step for event in events[1:]), last]
    return [event for event, end in zip(events, ends, strict=False) if event.step < last and first < end]


def _starts(folder: RunFolder) -> list[Event]:
    """Return the starts of all jobs, the newest with what an older timeline lacks and ``environment.json`` has."""
    events = [event for event in timeline.read(folder.timeline) if event.processes]
    if events:
        newest, environment = events[-1], folder.environment
        threads = newest.threads or read_facts(environment).threads
        events[-1] = replace(newest, threads=threads, numerics=newest.numerics or read_numerics(environment))
    return events


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


def replay_step(config: Config, engine: Engine, folder: RunFolder, step: int, show: Show) -> Replay:
    """Recompute step number ``step``, counted from 1. Collective.

    Args:
        config: the run's.
        engine: this process in the job.
        folder: the run.
        step: one that the run recorded.
        show: shows the progress, in steps.

    Raises:
        UserError: the run has no such step, or not its data.
        StopRequested: a process was asked to stop.
    """
    ranks = engine.ranks
    recorded, start = ranks.run_on_main(lambda: _find_start(config, folder, step))
    recomputation = Recomputation(config, engine, start)
    with show(step - recomputation.first) as advance:
        records, measured = recomputation.run(step, advance)
    norms = {
        name: float(full_tensor(parameter.grad).norm())
        for name, parameter in recomputation.learner.model.trainable_parameters().items()
        if parameter.grad is not None
    }
    setup = recomputation.setup
    mean, std = normalization_statistics(config.augment, setup.manifest)
    samples = _samples(setup, measured, engine)
    return Replay(
        records[-1], recorded, recomputation.first, samples, norms, mean, std, tuple(map(str, setup.manifest.classes))
    )


def _find_start(config: Config, folder: RunFolder, step: int) -> tuple[Record, Path | None]:
    """Return what a run recorded of a step, and the checkpoint to recompute it from; None for new weights."""
    check_data(config, folder)
    records = recorded_steps(folder)
    if step not in records:
        raise UserError(f"{folder.path} has no step {step}; its steps are {min(records)} to {max(records)}")
    points = starting_points(config, folder)
    before = [point for point in points if point < step]
    if not before:
        raise UserError(
            f"{folder.path} is a branch of {_beginning(folder).note} and has no checkpoint of its own before "
            f"step {step}; name a later step, or replay that run"
        )
    return records[step], points[before[-1]]


def _samples(setup: TrainingSetup, measured: StepMeasurements, engine: Engine) -> ReplayedSamples:
    """The samples of a step, of all processes. Their images are computed once more: they depend on nothing else."""
    epoch, position = divmod(measured.step - 1, setup.steps_per_epoch)
    batches = next(setup.batches.epoch(epoch, first_step=position))
    images = torch.cat([setup.mix(batch, epoch)[0] for batch in batches])
    counts = torch.cat([batch.weight for batch in batches]) > 0
    ranks = torch.full_like(measured.ids, engine.ranks.rank)
    labels = torch.cat([batch.labels for batch in batches])
    columns = (measured.ids, ranks, labels, measured.predicted, measured.losses, images.contiguous())
    return ReplayedSamples(*(engine.ranks.gather(column[counts]).cpu() for column in columns))
