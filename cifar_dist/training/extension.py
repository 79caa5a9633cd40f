"""Give a run another length, with the steps, records and checkpoints that it would have had from the start.

A run that is extended is marked as unfinished before its config has the new length.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cifar_dist import checkpoint
from cifar_dist.checkpoint import TrainState
from cifar_dist.config import Config, RunningAverageConfig
from cifar_dist.config.changes import LENGTH, in_words
from cifar_dist.config.settings import settings_of
from cifar_dist.errors import UserError
from cifar_dist.formatting import counted
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.settings import command_to_continue, other_run
from cifar_dist.tracking import metrics, timeline
from cifar_dist.tracking.timeline import Event
from cifar_dist.training.early_stopping import ends_by_patience
from cifar_dist.training.setup import TrainingSetup


def change_length(folder: RunFolder, setup: TrainingSetup, before: Config, newest: Path | None) -> list[str]:
    """Check that a run can have another length, and mark it as not finished; return lines to report.

    A kill in the middle is no harm: it is repeated, or the run keeps its length and is evaluated at its end again.

    Args:
        folder: of the run.
        setup: of the run with its new length.
        before: the settings that the run was started with.
        newest: its newest checkpoint, if it has one.

    Raises:
        UserError: the steps done so far would have been others, or are more than the new length.
    """
    step = checkpoint.read_state(newest).step if newest else 0
    settings = [settings_of(config) for config in (before, setup.config)]
    changes = ", ".join(
        f"{key} {in_words(settings[0][key])} -> {in_words(settings[1][key])}"
        for key in LENGTH
        if settings[0][key] != settings[1][key]
    )
    _check_past(folder, setup, before, step)
    _check_future(folder, setup, step, changes)
    damages = folder.discard_damaged_results()
    folder.supersede_final()
    _record(folder, Event(timeline.utc(), "extended", step, note=changes))
    return [*damages, f"the length of this run has changed: {changes}"]


def _record(folder: RunFolder, event: Event) -> None:
    """Record an extension once, also if it is repeated because a kill came before the config had the new length."""
    recorded = [one for one in timeline.read(folder.timeline) if one.kind in timeline.ORIGINS]
    if not recorded or replace(event, time=recorded[-1].time) != recorded[-1]:
        timeline.append(folder.timeline, event)


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
        f"{counted(step, 'step')} done; leave train.epochs as it was: {command_to_continue(folder)}, or "
        f"{other_run(folder, config)}"
    )


def _check_future(folder: RunFolder, setup: TrainingSetup, step: int, changes: str) -> None:
    """Refuse a length that the run has passed, or that adds nothing to a finished one."""
    is_finished = folder.is_finished()
    if setup.last_step < step or (is_finished and setup.last_step == step):
        done = f"{'is finished after' if is_finished else 'has done'} {counted(step, 'step')}"
        raise UserError(
            f"{folder.path} {done}, and {changes} asks for {setup.last_step}; "
            f"ask for more, or leave its length as it was: {command_to_continue(folder)}"
        )
    ends = ends_by_patience(step, folder, setup)
    if not ends:
        return
    first, remedy = ends[0], f"add --train.patience {max(end.waited for end in ends) + 1} or more, or"
    if first.step < step:
        raise UserError(
            f"{folder.path} has done {counted(step, 'step')}, and with {changes} would have ended before, by "
            f"{first.reason}; {remedy} leave its length as it was: {command_to_continue(folder)}"
        )
    if is_finished:
        raise UserError(
            f"{folder.path} is finished by {first.reason}; {changes} does not change that; "
            f"{remedy} {_no_patience(setup.config)}"
        )


def _no_patience(config: Config) -> str:
    """Return the words that switch early stopping off, with the settings that have no effect without it."""
    default = type(config.train)()
    changed = [key for key in ("monitor", "min_delta") if getattr(config.train, key) != getattr(default, key)]
    return " ".join(f"--train.{key} {getattr(default, key)}" for key in ("patience", *changed))


def state_to_continue(folder: RunFolder, newest: Path | None, setup: TrainingSetup) -> TrainState:
    """Return the state of a checkpoint as in a run that had its length from the start: evaluated here if it ends here.

    A run is always evaluated at its end. One that was made longer has such an evaluation where it is not the turn of
    that epoch; one that was made shorter, or long again, may lack it. The checkpoint of an evaluation that is undone
    gets the state without it: otherwise it could remain the best.

    Args:
        folder: of the run.
        newest: its newest checkpoint, if it has one.
        setup: of the run.
    """
    if newest is None:
        return checkpoint.NEW_RUN
    state = checkpoint.read_state(newest)
    if not is_evaluated_here(state, setup):
        return state
    if state.step == setup.last_step:
        records = metrics.evaluations(folder.metrics)
        is_right = not setup.validates or any(record.step == state.step for record in records)
    else:
        events = timeline.read(folder.timeline)
        was_end = any(event.kind == "extended" and event.step == state.step for event in events)
        within_epoch = state.epochs_evaluated * setup.steps_per_epoch > state.step
        is_right = not within_epoch and (not was_end or setup.is_turn(state.step))
    if is_right:
        return state
    undone = without_last_evaluation(folder, state, setup)
    checkpoint.replace_state(newest, undone)
    return undone


def is_evaluated_here(state: TrainState, setup: TrainingSetup) -> bool:
    """Whether the evaluation at the step of a checkpoint, if one was due there, is part of its state."""
    return state.step > 0 and state.epochs_evaluated > (state.step - 1) // setup.steps_per_epoch


def without_last_evaluation(folder: RunFolder, state: TrainState, setup: TrainingSetup) -> TrainState:
    """Return ``state`` as it was before the evaluation at its step; the best is then the best that is kept."""
    before = [record for record in metrics.evaluations(folder.metrics) if record.step < state.step]
    best = best_before(folder, state.step)
    return replace(
        state,
        epochs_evaluated=(state.step - 1) // setup.steps_per_epoch,
        val_accuracy=before[-1].accuracy if before else None,
        best_val_accuracy=checkpoint.read_state(best).val_accuracy if best else None,
        is_best=False,
    )


def best_before(folder: RunFolder, step: int) -> Path | None:
    """Return the checkpoint of the best evaluation before a step, of those that are kept; None for none.

    An evaluation that was undone is not in the metrics any more, and its checkpoint still says that it was the best.
    """
    evaluated = {record.step for record in metrics.evaluations(folder.metrics) if record.step < step}
    return checkpoint.best_of(folder.checkpoints, evaluated)
