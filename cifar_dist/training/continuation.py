"""Open the folder of a run and choose the checkpoint to continue from. For rank 0."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from cifar_dist import checkpoint
from cifar_dist.checkpoint import TrainState
from cifar_dist.config import Config
from cifar_dist.config.changes import LENGTH, OF_THE_FOLDER, contradiction
from cifar_dist.config.saved import read_config
from cifar_dist.config.settings import settings_of
from cifar_dist.data.dataset_folder import FILE_NAME
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError, quoted
from cifar_dist.launch.typed_command import command_for_verbs
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.opening import open_folder, refuse_other_data
from cifar_dist.run_folder.settings import (
    read_settings,
    read_started_settings,
    refuse_other_settings,
    started_settings,
    way_to_start_from_weights,
    write_data_path,
)
from cifar_dist.step_folder import step_name
from cifar_dist.tracking import metrics, timeline
from cifar_dist.tracking.begun import has_trained
from cifar_dist.tracking.lost_records import describe_lost_evaluations
from cifar_dist.training.branch import begin_branch
from cifar_dist.training.extension import change_length, state_to_continue
from cifar_dist.training.origin import find_origin
from cifar_dist.training.setup import TrainingSetup

_OF_FINAL_EVALUATION: Final = ("eval.split", "eval.tta", "eval.tta_below")
"""Settings that a finished run was evaluated with."""


def discard_unbegun(folder: RunFolder) -> None:
    """Delete a run that no process has begun to train, unless it waits as a job or has files that no run writes.

    The curve of a range test stays, in a folder that is not a run any more.
    """
    events = timeline.read(folder.timeline)
    was_started = timeline.last_of_a_process(events) is not None
    newest = folder.newest_checkpoint()  # of a branch, the copy with which it begins
    is_copy = any(event.kind == "branched" and step_name(event.step) == newest for event in events)
    begun = was_started or (has_trained(folder) and not is_copy)
    if begun or folder.job_script.exists() or folder.has_foreign_files():
        return
    if folder.lr_curve.exists():
        folder.discard_all_but_range_test()
    else:
        folder.discard()


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
    # Of a kill while the last results were written, or before the end was recorded.
    if folder.leftovers() or timeline.lacks_end(timeline.read(folder.timeline)):
        return False
    refuse_other_settings(folder, config, besides=LENGTH)
    if folder.manifest.is_file() and Path(config.data.path, FILE_NAME).is_file():  # else it is finished all the same
        refuse_other_data(folder, Manifest.load(config.data.path))
    started = read_started_settings(folder)
    return contradiction(settings_of(started), settings_of(config)) is None


def move_data(config: Config) -> str:
    """Write the place of the data that a config names into the settings of its run, if that :func:`is_finished`.

    Returns:
        A line to report; empty where the settings name that place already.

    Raises:
        UserError: the run's settings are damaged.
        InUseError: another process has locked it.
    """
    folder, path = RunFolder.of(config), config.data.path
    before = read_config(folder.config).data.path
    if before == path == read_started_settings(folder).data.path:
        return ""
    why = next((f"{file} is missing" for file in (folder.manifest, Path(path, FILE_NAME)) if not file.is_file()), "")
    if not why:
        try:
            with folder.locked():
                write_data_path(folder, path)
        except OSError as error:
            why = f"{folder.path} cannot be written ({error.strerror})"
    return f"data.path is still {before}: {why}" if why else f"data.path is now {path}"


def notes_on_finished(config: Config) -> list[str]:
    """Say which settings of a config no longer have an effect on its run, which is finished; one line each.

    The place of the data has one, see :func:`move_data`.

    Raises:
        UserError: the run's settings are damaged.
    """
    folder = RunFolder.of(config)
    notes = []
    summary = folder.final_summary()
    if summary is not None and (other := summary.other_setting(config)):
        now, saved = config.eval, read_settings(folder).eval
        words = ["evaluate", quoted(folder.path), "--checkpoint latest"]
        words += [f"--split {now.split}"] if now.split != saved.split else []
        words += [f"--tta {now.tta}"] if now.tta != saved.tta else []
        words += [f"--tta-below {now.tta_below:g}"] if now.tta_below != saved.tta_below else []
        notes.append(f"it was evaluated with another {other}; for this one: {command_for_verbs()} {' '.join(words)}")
    started, asked = started_settings(folder), settings_of(config)
    changed = [key for key, value in asked.items() if started.get(key, value) != value]
    others = (*OF_THE_FOLDER, "data.path", *(_OF_FINAL_EVALUATION if summary is not None else ()))
    idle = [key for key in changed if key not in others]
    return [*notes, *([f"{', '.join(idle)}: without effect on a finished run"] if idle else [])]


class Continuation(NamedTuple):
    """Where a run continues.

    Attributes:
        checkpoint: whose weights it continues with; None for new ones.
        state: of training there.
        notes: lines to report.
    """

    checkpoint: Path | None
    state: TrainState
    notes: list[str]


def open_run(folder: RunFolder, setup: TrainingSetup) -> Continuation:
    """Create or open the folder of a run, and choose where it continues.

    Raises:
        UserError: the folder cannot be used, the config contradicts the run, or the run to branch from cannot be used.
    """
    config = setup.config
    # Before there is a folder, which one that cannot begin would leave behind.
    origin = find_origin(folder, setup) if config.run.from_ and not folder.exists() else None
    notes = open_folder(folder, config, setup.manifest, lambda before: _extend(folder, setup, before))
    found, damaged = _choose(folder)
    if found is None and config.run.from_:
        notes += begin_branch(folder, origin or find_origin(folder, setup), setup)
        found, _ = _choose(folder)
    state = state_to_continue(folder, found, setup)
    others = (_lost_evaluations(folder, setup, state), _lost_best(state), checkpoint.links_note(folder.checkpoints))
    return Continuation(found, state, [*notes, *damaged, *filter(None, others)])


def _lost_best(state: TrainState) -> str:
    if state.val_accuracy is None or state.best_val_accuracy is not None:
        return ""
    return "the checkpoint of the best evaluation so far is lost; the next evaluation is the best"


def _lost_evaluations(folder: RunFolder, setup: TrainingSetup, state: TrainState) -> str:
    epochs = range(state.epochs_evaluated if setup.validates else 0)
    due = [epoch for epoch in epochs if setup.is_turn((epoch + 1) * setup.steps_per_epoch)]
    return describe_lost_evaluations(folder.metrics, state.step, due)


def _choose(folder: RunFolder) -> tuple[Path | None, list[str]]:
    """Choose the checkpoint to continue from, as :func:`checkpoint.choose` does.

    Raises:
        UserError: also, the run has lost all its checkpoints; it would begin again, and replace its metrics.
    """
    try:
        found, damaged = checkpoint.choose(folder.checkpoints)
        saved = max((event.step for event in timeline.read(folder.timeline) if event.kind in timeline.SAVED), default=0)
        if found is None and saved:
            raise checkpoint.NoCheckpointLeftError(
                f"{folder.checkpoints} has no intact checkpoint (all were deleted; one was of step {saved})"
            )
    except checkpoint.NoCheckpointLeftError as error:
        over = f"rm -r {quoted(folder.path)}{way_to_start_from_weights(folder)}"
        raise UserError(f"{error}; restore one, or start this run over: {over}") from None
    return found, damaged


def _extend(folder: RunFolder, setup: TrainingSetup, before: Config) -> list[str]:
    newest, damaged = _choose(folder)
    return [*damaged, *change_length(folder, setup, before, newest)]
