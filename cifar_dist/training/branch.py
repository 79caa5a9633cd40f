"""Begin a run with a checkpoint of another one, and with the metrics up to it.

A branch takes its origin's checkpoint as long as it has none of its own, so that one that is killed can be repeated.
Its folder receives only evaluations that count in it: nothing that reads it later has to know which those are.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from cifar_dist import checkpoint
from cifar_dist.checkpoint import TrainState
from cifar_dist.config import RunningAverageConfig
from cifar_dist.config.changes import KEPT_BY_A_BRANCH, in_words
from cifar_dist.config.settings import settings_of
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.order import epoch_order, steps_per_epoch
from cifar_dist.errors import UserError, quoted
from cifar_dist.files import copy_atomic
from cifar_dist.run_folder import RunFolder, find_run, split_step
from cifar_dist.run_folder.settings import read_started_settings
from cifar_dist.step_folder import step_of
from cifar_dist.tracking import timeline
from cifar_dist.tracking.metrics import MetricsLog
from cifar_dist.tracking.timeline import Event
from cifar_dist.training.early_stopping import stopping_after
from cifar_dist.training.extension import is_evaluated_here, without_last_evaluation
from cifar_dist.training.setup import TrainingSetup


def find_origin(folder: RunFolder, setup: TrainingSetup) -> Path | None:
    """Find the checkpoint that ``run.from`` names and check that this run can begin with it; None without one.

    Raises:
        UserError: it does not exist, or this run cannot begin with it.
    """
    config = setup.config
    if not config.run.from_:
        return None
    run, which = split_step(config.run.from_)
    source = find_run(run, Path(config.run.dir), checkpoint="as RUN@STEP")
    if source.path.resolve() == folder.path.resolve():
        raise UserError(f"run.from {run} is this run itself; give the new run another --run.name")
    found = checkpoint.named(source.checkpoints, which or "latest", option="--model.pretrained")
    step = checkpoint.read_state(found).step
    _check_same_order(source, found, setup)
    _check_same_parts(source, found, setup)
    _check_same_average(source, step, setup)
    if step >= setup.last_step:
        length = "max_steps" if setup.config.train.max_steps == setup.last_step else "epochs"
        raise UserError(
            f"run.from: step {step} is the end of this run or beyond; give it more --train.{length}, or begin with an "
            f"earlier step: {', '.join(_steps_before(source, setup.last_step)) or 'none is kept'}"
        )
    stopping = stopping_after(step, source, setup)
    if _counts_evaluations(source, setup) and stopping.is_exhausted():
        raise UserError(
            f"run.from: at step {step} this run is complete by {stopping}; "
            f"use --train.patience {stopping.waited + 1} or more, or an earlier step"
        )
    _check_same_shapes(source, found, setup)
    return found


def _steps_before(source: RunFolder, end: int, *, multiples_of: int = 1) -> list[str]:
    steps = [step_of(path) or 0 for path in checkpoint.listing(source.checkpoints)]
    return [f"--run.from {quoted(source.path)}@{step}" for step in steps if step < end and step % multiples_of == 0]


def _check_same_order(source: RunFolder, found: Path, setup: TrainingSetup) -> None:
    """Refuse a branch in which the step of a checkpoint would be another place in the data."""
    config, manifest, before = setup.config, source.read_manifest(), read_started_settings(source)
    instead = _from_weights_instead(source, found, setup)
    if (difference := setup.manifest.difference(manifest)) and not config.run.from_other_data:
        raise UserError(
            f"run.from: {source.path} was trained on other data than {setup.manifest.root} has {difference}; "
            "if that is meant, add --run.from_other_data"
        )
    if manifest.classes != setup.manifest.classes:
        way = instead or "use a dataset with the same ones"
        raise UserError(f"run.from: {source.path} has other classes than {setup.manifest.root}; {way}")
    trained = manifest.for_training(before.data.hold_out)
    steps = steps_per_epoch(trained.samples("train"), before.train.batch_size)
    if steps != setup.steps_per_epoch:
        samples = len(setup.batches.images)
        sizes = (before.train.batch_size, -(-samples // steps))
        size = next((one for one in sizes if steps_per_epoch(samples, one) == steps), None)
        ways = [f"use --train.batch_size {size}" if size else f"no train.batch_size gives {samples} samples as many"]
        raise UserError(
            f"run.from: an epoch of {source.path} has {steps} steps and one of this run {setup.steps_per_epoch}; "
            f"{', or '.join([*ways, *filter(None, [instead])])}"
        )


def _check_same_parts(source: RunFolder, found: Path, setup: TrainingSetup) -> None:
    """Refuse a branch with another network, optimizer or average, which cannot take over the state of a checkpoint."""
    before, now = settings_of(read_started_settings(source)), settings_of(setup.config)
    for key in KEPT_BY_A_BRANCH:
        if before.get(key) != now.get(key):
            raise UserError(
                f"run.from: {source.path} has {key} = {in_words(before.get(key))} and this run "
                f"{in_words(now.get(key))}; use the same{_or(_from_weights_instead(source, found, setup))}"
            )


def _check_same_average(source: RunFolder, step: int, setup: TrainingSetup) -> None:
    """Refuse a branch whose average would have begun or been updated at other steps than it was, up to ``step``."""
    before, now = read_started_settings(source).average, setup.config.average
    if not (isinstance(before, RunningAverageConfig) and isinstance(now, RunningAverageConfig)):
        return
    was = replace(now, start=before.start, every=before.every)  # as ``before``, whose code was not imported
    starts = [one.first_step(setup.steps_per_epoch) for one in (was, now)]
    if starts[0] != starts[1]:
        key, first, both = "start", min(starts), "both"
    elif was.every != now.every and _counts_updates(was, now, setup):
        key, first, both = "every", starts[0] + min(was.every, now.every), "the first update of both"
    else:
        return
    if step >= first:
        there, here = (f"{getattr(one, key):g}" for one in (was, now))
        raise UserError(
            f"run.from: {source.path} has average.{key} = {there} and this run {here}, and step {step} is not before "
            f"{both}; use --average.{key} {there}, or begin with an earlier step: "
            f"{', '.join(_steps_before(source, first)) or 'none is kept'}"
        )


def _counts_updates(was: RunningAverageConfig, now: RunningAverageConfig, setup: TrainingSetup) -> bool:
    """Whether a weight depends on the number of updates before it, and so on ``every``: that of a mean does."""
    start, total = now.first_step(setup.steps_per_epoch), setup.steps_per_epoch * setup.config.train.epochs
    common = start + math.lcm(was.every, now.every)
    return was.weight(common, start=start, total=total) != now.weight(common, start=start, total=total)


def _check_same_shapes(source: RunFolder, found: Path, setup: TrainingSetup) -> None:
    """Refuse a branch with a network of the same name, of which an option or its code gives weights another shape."""
    shapes = [
        {name: "x".join(map(str, tensor.shape)) for name, tensor in tensors.items() if tensor.ndim}
        for tensors in (checkpoint.load(found).tensors.weights, setup.module.state_dict())
    ]
    names = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    if not names:
        return
    name = next((name for name in names if name in shapes[0] and name in shapes[1]), names[0])
    settings = [settings_of(config) for config in (read_started_settings(source), setup.config)]
    keys = sorted(key for key in settings[0].keys() | settings[1].keys() if key.startswith("model."))
    changed = [key for key in keys if settings[0].get(key) != settings[1].get(key)]
    before, now = source.read_manifest().shape, setup.manifest.shape
    if before != now:
        way = f"use images of {before} instead of {now} (height, width, channels)"
    else:
        way = (
            f"use the same {' and '.join(changed)}" if changed else f"the code of {setup.config.model.name} has changed"
        )
    there, here = (shape.get(name, "missing") for shape in shapes)
    raise UserError(f"run.from: {name} is {there} in {source.path} and {here} in this run; {way}")


def _from_weights_instead(source: RunFolder, found: Path, setup: TrainingSetup) -> str:
    """Return how to start from the weights alone; empty if they are another network's, or in several files."""
    files = (source.final,) if source.final.is_file() else checkpoint.evaluated_weights(found)
    if len(files) > 1 or read_started_settings(source).model.name != setup.config.model.name:
        return ""
    return f"start from its weights instead, with --model.pretrained {quoted(files[0])} and without --run.from"


def _order_note(source: RunFolder, step: int, setup: TrainingSetup) -> str:
    """Say that the epoch under way is completed in another order than it was begun in; empty otherwise."""
    epoch, position = divmod(step, setup.steps_per_epoch)
    runs = ((source.read_manifest(), read_started_settings(source)), (setup.manifest, setup.config))
    begun, asked = (
        epoch_order(
            [shard.samples for shard in manifest.for_training(config.data.hold_out).shards("train")],
            config.run.seed,
            epoch,
            config.data.shuffle_block,
        )[: position * config.train.batch_size]
        for manifest, config in runs
    )
    if torch.equal(begun, asked):
        return ""
    before, now = (settings_of(config) for _, config in runs)
    keys = ("run.seed", "data.shuffle_block", "train.batch_size", "data.hold_out")
    differing = [key for key in keys if before.get(key) != now.get(key)] or ["data"]
    ends = _steps_before(source, setup.last_step, multiples_of=setup.steps_per_epoch)
    begin = f"begin with the end of an epoch: {', '.join(ends)}" if ends else ""
    return (
        f"epoch {epoch + 1} is completed in another order than {source.path} has begun it: some of its images come "
        f"twice, others not at all; use the same {' and '.join(differing)}{_or(begin)}"
    )


def _or(way: str) -> str:
    return f", or {way}" if way else ""


def _counts_evaluations(source: RunFolder, setup: TrainingSetup) -> bool:
    """Whether the evaluations of another run count in this one: they are on the same images."""
    val = _val_of(setup.manifest, setup.config.data.hold_out)
    return bool(val) and val == _val_of(source.read_manifest(), read_started_settings(source).data.hold_out)


def _val_of(manifest: Manifest, hold_out: bool) -> list[tuple[str, list[int]]]:
    """Return what a run is evaluated on while it trains, as checksum and labels of each shard; nothing if it is not."""
    shards = manifest.for_training(hold_out).splits.get("val", ())
    return [(shard.sha256, shard.labels.tolist()) for shard in shards]


def _as_a_beginning(origin: Path, setup: TrainingSetup) -> tuple[TrainState, Path | None]:
    """Return the state that a branch has at a checkpoint of its origin, and the best checkpoint of that time, if any.

    An evaluation that only the end of the origin there made is not one of a run that continues.
    """
    source, state = RunFolder(origin.parents[1]), checkpoint.read_state(origin)
    best = checkpoint.best(source.checkpoints, until=state.step)
    steps_per_turn = setup.steps_per_epoch * read_started_settings(source).eval.every
    if is_evaluated_here(state, setup) and state.step % steps_per_turn:
        state = without_last_evaluation(source, state, setup)
        best = checkpoint.best_before(source.checkpoints, state.step)
    if not _counts_evaluations(source, setup):
        return replace(state, val_accuracy=None, best_val_accuracy=None, is_best=False), None
    if best is None or not checkpoint.is_intact(best):
        return replace(state, best_val_accuracy=None, is_best=False), None
    return state, best


def begin_branch(folder: RunFolder, origin: Path | None, setup: TrainingSetup) -> list[str]:
    """Begin ``folder`` with a checkpoint of another run and the metrics up to it; return lines to report."""
    assert origin is not None, "run.from names a checkpoint"
    source = RunFolder(origin.parents[1])
    state, best = _as_a_beginning(origin, setup)
    where = f"{source.path}@{state.step}"
    if source.metrics.is_file():
        copy_atomic(source.metrics, folder.metrics)
        log = MetricsLog(folder.metrics)
        log.cut(state.step, 0 if state.val_accuracy is None else state.epochs_evaluated)
        log.close()
    if not any(event.kind == "branched" and event.note == where for event in timeline.read(folder.timeline)):
        timeline.append(folder.timeline, Event(timeline.utc(), "branched", state.step, note=where))
    checkpoint.copy_to(origin, folder.checkpoints, state, best)
    notes = (_validation_note(origin, setup), _order_note(source, state.step, setup))
    return [f"branched from {where}", *filter(None, notes)]


def _validation_note(origin: Path, setup: TrainingSetup) -> str:
    """Say that those before the branch do not count, or that those after it are on learnt images; empty otherwise."""
    source = RunFolder(origin.parents[1])
    val = _val_of(setup.manifest, setup.config.data.hold_out)
    if val and read_started_settings(source).trains_on("val") and val == _val_of(source.read_manifest(), hold_out=True):
        return f"{source.path} was trained on val, so the validation accuracy here is not that of new images"
    if checkpoint.read_state(origin).val_accuracy is None or _counts_evaluations(source, setup):
        return ""
    why = f"{source.path} has another val" if val else "this run is not evaluated on val"
    return f"{why}, so the validation accuracies up to step {step_of(origin)} do not count"
