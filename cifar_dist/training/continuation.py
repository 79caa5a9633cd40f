"""Continue a run: resume it, change its length, or begin it with a checkpoint of another run. For rank 0.

The order of the writes decides what a kill leaves: a run that is extended is unfinished before its config has the new
length, and a branch takes its origin's checkpoint as long as it has none of its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cifar_dist import checkpoint, recipe
from cifar_dist.checkpoint import TrainState
from cifar_dist.config import Config, RunningAverageConfig
from cifar_dist.config.changes import KEPT_BY_A_BRANCH, LENGTH, contradiction, in_words
from cifar_dist.data.manifest import FILE_NAME, Manifest
from cifar_dist.data.order import steps_per_epoch
from cifar_dist.errors import UserError, quoted
from cifar_dist.files import copy_atomic, discard
from cifar_dist.run_folder import RunFolder, find_run
from cifar_dist.run_folder.opening import open_folder, refuse_other_data
from cifar_dist.run_folder.settings import (
    other_run,
    read_started_settings,
    refuse_other_settings,
    resume_command,
    way_to_start_from_weights,
)
from cifar_dist.tracking import metrics, timeline
from cifar_dist.tracking.metrics import MetricsLog, Record
from cifar_dist.tracking.timeline import Event
from cifar_dist.training.early_stopping import EarlyStopping
from cifar_dist.training.setup import TrainingSetup


def discard_unbegun(folder: RunFolder) -> None:
    """Delete a run that no process has begun to train, unless it waits as a job or has files that no run writes."""
    begun = any(event.kind not in timeline.ORIGINS for event in timeline.read(folder.timeline))
    if not (begun or folder.job_script.exists() or folder.lr_curve.exists() or folder.has_foreign_files()):
        discard(folder.path)


def is_finished(config: Config) -> bool:
    """Whether the run that a config asks for is finished, so that there is nothing to do and nothing to write.

    Raises:
        UserError: the config contradicts the run, or the run was trained on other data.
    """
    folder = RunFolder.of(config)
    if not folder.exists() or config.run.fresh or not folder.is_finished(config.eval.split):
        return False
    if folder.damaged_results() or not metrics.is_as_written(folder.metrics):  # what can be is written again
        return False
    refuse_other_settings(folder, config, besides=LENGTH)
    if folder.manifest.is_file() and Path(config.data.path, FILE_NAME).is_file():  # else it is finished all the same
        refuse_other_data(folder, Manifest.load(config.data.path))
    started = read_started_settings(folder)
    return contradiction(recipe.settings_of(started), recipe.settings_of(config)) is None


def open_run(folder: RunFolder, setup: TrainingSetup) -> tuple[Path | None, list[str]]:
    """Create or open the folder of a run; return the checkpoint to continue from, and lines to report.

    Raises:
        UserError: the folder cannot be used, the config contradicts the run, or the run to branch from cannot be used.
    """
    config = setup.config
    origin = None if folder.exists() else _find_origin(folder, setup)  # before there is a folder
    notes = open_folder(folder, config, setup.manifest, lambda before: _change_length(folder, setup, before))
    found, damaged = _choose(folder)
    if found is None and config.run.from_:
        notes.append(_branch(folder, origin or _find_origin(folder, setup)))
        found, _ = _choose(folder)
    return found, [*notes, *damaged]


def _choose(folder: RunFolder) -> tuple[Path | None, list[str]]:
    """Choose the checkpoint to continue from, as :func:`checkpoint.choose` does.

    Raises:
        UserError: also, the run has lost all its checkpoints; it would begin again, and replace its metrics.
    """
    found, damaged = checkpoint.choose(folder.checkpoints)
    saved = max((event.step for event in timeline.read(folder.timeline) if event.kind in timeline.SAVED), default=0)
    if found is None and saved:
        raise UserError(
            f"{folder.checkpoints} has no checkpoint left, and this run was saved at step {saved}; restore one, or "
            f"start this run over: rm -r {quoted(folder.path)}{way_to_start_from_weights(folder)}"
        )
    return found, damaged


def state_to_continue(folder: RunFolder, state: TrainState, setup: TrainingSetup) -> TrainState:
    """Return ``state`` as a run has it that had its length from the start: evaluated here if it ends here.

    A run is always evaluated at its end. One that was made longer has such an evaluation where it is not the turn of
    that epoch, and one that was made shorter, or long again, may lack it.
    """
    done_before = (state.step - 1) // setup.steps_per_epoch
    if state.step == 0 or state.epochs_evaluated <= done_before:
        return state  # not evaluated here
    records = _evaluations(folder)
    if state.step == setup.last_step:
        is_evaluated = any(record.step == state.step for record in records)
        is_right = is_evaluated or "val" not in setup.manifest.splits or not setup.config.data.hold_out
    else:
        events = timeline.read(folder.timeline)
        was_end = any(event.kind == "extended" and event.step == state.step for event in events)
        within_epoch = state.epochs_evaluated * setup.steps_per_epoch > state.step
        is_right = not within_epoch and (not was_end or _is_turn(state.step, setup))
    if is_right:
        return state
    before = [record.accuracy for record in records if record.step < state.step]
    return replace(
        state,
        epochs_evaluated=done_before,
        val_accuracy=before[-1] if before else None,
        best_val_accuracy=checkpoint.best_accuracy(folder.checkpoints, before=state.step),
        is_best=False,
    )


def _is_turn(step: int, setup: TrainingSetup) -> bool:
    """Whether a run is evaluated after ``step`` also where that is not its end."""
    return step % (setup.steps_per_epoch * setup.config.eval.every) == 0


def _evaluations(folder: RunFolder) -> list[Record]:
    return [record for record in metrics.read(folder.metrics) if record.split == "val"]


# ---- another length ---------------------------------------------------------------------------------------------


def _change_length(folder: RunFolder, setup: TrainingSetup, before: Config) -> list[str]:
    """Check that a run can have another length, and mark it as not finished; return a line to report."""
    newest, damaged = _choose(folder)
    step = checkpoint.read_state(newest).step if newest else 0
    settings = [recipe.settings_of(config) for config in (before, setup.config)]
    changes = ", ".join(
        f"{key} {in_words(settings[0][key])} -> {in_words(settings[1][key])}"
        for key in LENGTH
        if settings[0][key] != settings[1][key]
    )
    _check_past(folder, setup, before, step)
    _check_future(folder, setup, step, changes)
    event = Event(timeline.utc(), "extended", step, note=changes)
    timeline.append(folder.timeline, event)
    damages = folder.discard_damaged_results()
    folder.supersede_final()
    return [*damaged, *damages, f"the length of this run has changed: {changes}"]


def _check_past(folder: RunFolder, setup: TrainingSetup, before: Config, step: int) -> None:
    """Refuse a length with which the steps done so far would have been others."""
    config = setup.config
    lengths = {"steps_per_epoch": setup.steps_per_epoch, "before": before.train.epochs, "after": config.train.epochs}
    schedule, average = config.schedule, config.average
    if not schedule.keeps_rates(step, **lengths):
        cause = f'the learning rates of schedule.name = "{schedule.name}"'
    elif isinstance(average, RunningAverageConfig) and not average.keeps_weights(step, **lengths):
        cause = f'the weights of average.name = "{average.name}"'
    else:
        return
    raise UserError(
        f"{folder.path}: train.epochs {before.train.epochs} -> {config.train.epochs} would change {cause} in the "
        f"{step} steps done; leave train.epochs as it was: {resume_command(folder)}, or {other_run(folder, config)}"
    )


def _check_future(folder: RunFolder, setup: TrainingSetup, step: int, changes: str) -> None:
    """Refuse a length that the run has passed, or that adds nothing to a finished one."""
    is_finished = folder.is_finished()
    if setup.last_step < step or (is_finished and setup.last_step == step):
        done = f"is finished after {step} steps" if is_finished else f"has done {step} steps"
        raise UserError(
            f"{folder.path} {done}, and {changes} asks for {setup.last_step}; "
            f"ask for more, or leave its length as it was: {resume_command(folder)}"
        )
    stopping = _early_stopping(folder, setup, step)
    if is_finished and stopping.is_exhausted():
        raise UserError(
            f"{folder.path} is finished by {stopping}; {changes} does not change that; "
            f"add --train.patience {stopping.waited + 1} or more, or {_no_patience(setup.config)}"
        )


def _no_patience(config: Config) -> str:
    """Return the words that switch early stopping off, with the settings that have no effect without it."""
    default = type(config.train)()
    changed = [key for key in ("monitor", "min_delta") if getattr(config.train, key) != getattr(default, key)]
    return " ".join(f"--train.{key} {getattr(default, key)}" for key in ("patience", *changed))


def _early_stopping(folder: RunFolder, setup: TrainingSetup, step: int) -> EarlyStopping:
    """Return early stopping as the settings of this run have it after the first ``step`` steps of a run."""
    records = _evaluations(folder)
    turns = (one for one in records if one.step < step or (one.step == step and _is_turn(step, setup)))
    return EarlyStopping(setup.config.train, turns)


# ---- a branch ---------------------------------------------------------------------------------------------------


def _find_origin(folder: RunFolder, setup: TrainingSetup) -> Path | None:
    """Find the checkpoint that ``run.from`` names and check that this run can begin with it; None without one."""
    config = setup.config
    if not config.run.from_:
        return None
    run, _, which = config.run.from_.partition("@")
    source = RunFolder(find_run(run, Path(config.run.dir), checkpoint="as RUN@STEP"))
    if source.path.resolve() == folder.path.resolve():
        raise UserError(f"run.from {run} is this run itself; give the new run another --run.name")
    found = checkpoint.named(source.checkpoints, which or "latest")
    _check_same_order(source, setup)
    _check_same_parts(source, setup)
    step = checkpoint.read_state(found).step
    if step >= setup.last_step:
        length = "max_steps" if setup.config.train.max_steps == setup.last_step else "epochs"
        raise UserError(
            f"run.from: step {step} is the end of this run or beyond; give it more --train.{length}, or begin with an "
            f"earlier step: {', '.join(_steps_before(source, setup.last_step)) or 'none is kept'}"
        )
    if (stopping := _early_stopping(source, setup, step)).is_exhausted():
        raise UserError(
            f"run.from: at step {step} this run is complete by {stopping}; "
            f"use --train.patience {stopping.waited + 1} or more, or an earlier step"
        )
    _check_same_shapes(source, found, setup)
    return source.checkpoints / found.name


def _steps_before(source: RunFolder, end: int) -> list[str]:
    steps = [checkpoint.step_of(path) or 0 for path in checkpoint.listing(source.checkpoints)]
    return [f"--run.from {quoted(source.path)}@{step}" for step in steps if step < end]


def _check_same_order(source: RunFolder, setup: TrainingSetup) -> None:
    """Refuse a branch in which the step of a checkpoint would be another place in the data."""
    config, manifest, before = setup.config, source.read_manifest(), read_started_settings(source)
    weights = _from_weights_instead(source)
    if manifest.fingerprint != setup.manifest.fingerprint and not config.run.from_other_data:
        raise UserError(
            f"run.from: {source.path} was trained on other data than {setup.manifest.root} has "
            f"({manifest.fingerprint}, now {setup.manifest.fingerprint}); if that is meant, add --run.from_other_data"
        )
    if manifest.classes != setup.manifest.classes:
        raise UserError(f"run.from: {source.path} has other classes than {setup.manifest.root}; {weights}")
    trained = manifest.for_training(before.data.hold_out)
    steps = steps_per_epoch(trained.samples("train"), before.train.batch_size)
    if steps != setup.steps_per_epoch:
        raise UserError(
            f"run.from: an epoch of {source.path} has {steps} steps and one of this run {setup.steps_per_epoch}; "
            f"use --train.batch_size {before.train.batch_size}, or {weights}"
        )


def _check_same_parts(source: RunFolder, setup: TrainingSetup) -> None:
    """Refuse a branch with another network, optimizer or average, which cannot take over the state of a checkpoint."""
    before, now = recipe.settings_of(read_started_settings(source)), recipe.settings_of(setup.config)
    for key in KEPT_BY_A_BRANCH:
        if before.get(key) != now.get(key):
            raise UserError(
                f"run.from: {source.path} has {key} = {in_words(before.get(key))} and this run "
                f"{in_words(now.get(key))}; use the same, or {_from_weights_instead(source)}"
            )


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
    settings = [recipe.settings_of(config) for config in (read_started_settings(source), setup.config)]
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


def _from_weights_instead(source: RunFolder) -> str:
    return f"start from its weights instead, with --model.pretrained {quoted(source.final)} and without --run.from"


def _branch(folder: RunFolder, origin: Path | None) -> str:
    """Begin ``folder`` with a checkpoint of another run and the metrics up to it; return a line to report."""
    assert origin is not None, "run.from names a checkpoint"
    source = RunFolder(origin.parents[1])
    state = checkpoint.read_state(origin)
    step = state.step
    where = f"{source.path}@{step}"
    if source.metrics.is_file():
        copy_atomic(source.metrics, folder.metrics)
        log = MetricsLog(folder.metrics)
        log.cut(step, state.epochs_evaluated)
        log.close()
    if not any(event.kind == "branched" and event.note == where for event in timeline.read(folder.timeline)):
        timeline.append(folder.timeline, Event(timeline.utc(), "branched", step, note=where))
    checkpoint.copy_to(origin, folder.checkpoints)
    return f"branched from {where}"
