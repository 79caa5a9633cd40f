"""The settings of a run: as it was started, and as its ``config.toml`` has them now, which users edit.

A resume that contradicts them is refused with the key that differs and commands that work instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from cifar_dist.config import Config, plugins
from cifar_dist.config.changes import LENGTH, can_branch, contradiction, words_of_changes
from cifar_dist.config.plugin_copies import notes_on, use_copies
from cifar_dist.config.saved import read_config
from cifar_dist.config.section import expand_existing
from cifar_dist.config.settings import settings_of
from cifar_dist.config.tree import to_toml
from cifar_dist.errors import UserError, printable, quoted
from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.folders import free_name
from cifar_dist.launch.launched import is_main_process
from cifar_dist.launch.typed_command import command_for_recipes, command_for_verbs
from cifar_dist.run_folder.finding import split_step
from cifar_dist.run_folder.folder import RunFolder
from cifar_dist.step_folder import step_of
from cifar_dist.terminal.notice import notice

_OF_TRAINING: Final = ("optim", "schedule", "average", "tracking")
"""Sections that predictions do not depend on."""


def write_settings(folder: RunFolder, config: Config) -> None:
    """Write the settings that a start of the run uses."""
    text = to_toml(config)
    write_atomic(folder.config, text)
    write_atomic(folder.started_config, text)


def write_data_path(folder: RunFolder, path: str) -> None:
    """Write another ``data.path`` into the settings of a run, in both files, which may differ otherwise.

    Raises:
        UserError: they are damaged.
        OSError: they cannot be written.
    """
    files = [file for file in (folder.config, folder.started_config) if file.is_file()]
    configs = [read_config(file) for file in files]
    for file, config in zip(files, configs, strict=True):
        write_atomic(file, to_toml(replace(config, data=replace(config.data, path=path))))


def read_settings(folder: RunFolder) -> Config:
    """Read ``config.toml``, in which what changes no result may have been edited, and the length of the run.

    Raises:
        UserError: it is damaged, or was edited into other settings than the run was started with.
    """
    config = read_config(folder.config)
    if found := contradiction(started_settings(folder), settings_of(config), LENGTH, str(folder.config)):
        raise UserError(
            f"{folder.path} was started with {found[1]}; write the first there again, or {other_run(folder, config)}"
        )
    return config


def read_settings_with_plugins(folder: RunFolder, *, trains: bool = True) -> Config:
    """Read ``config.toml`` as :func:`read_settings` does, to compute with it: import the plug-ins that trained the run.

    Of a file that has changed since, or does not exist, that is its copy in the folder; of a package that has changed,
    it is the package as it is now. Rank 0 says so.

    Args:
        folder: the run.
        trains: False to predict only: sections that only training computes with have their defaults, so that the
            plug-ins in them are not needed.

    Raises:
        UserError: also, a plug-in cannot be imported, or refuses its settings.
    """
    read_settings(folder)
    use_copies(folder.plugins, also_changed=True)
    config = read_config(folder.config, import_plugins=True, without=() if trains else _OF_TRAINING)
    for line in notes_on(plugins.code_of(config)) if is_main_process() else ():
        notice(printable(line))
    return config


def read_started_settings(folder: RunFolder) -> Config:
    """Read the settings that the run was last started with, whatever ``config.toml`` was edited to since.

    Raises:
        UserError: they are damaged.
    """
    return read_config(folder.started_config if folder.started_config.is_file() else folder.config)


def started_settings(folder: RunFolder) -> Mapping[str, object]:
    """Return the settings of :func:`read_started_settings` by key."""
    return settings_of(read_started_settings(folder))


def refuse_other_settings(folder: RunFolder, config: Config, besides: Sequence[str] = ()) -> None:
    """Refuse a ``config`` that cannot resume this run.

    Args:
        config: the run that is asked for.
        besides: keys that may differ too.

    Raises:
        UserError: ``config``, or the run's ``config.toml`` as it is now, contradicts a setting of the run; the
            message names the first, and the commands that continue the run as it was and that start another one.
    """
    read_settings(folder)
    if found := contradiction(started_settings(folder), settings_of(config), besides):
        key, words = found
        raise UserError(
            f"{folder.path} was started with {words}; leave {key} as it was: {command_to_continue(folder, config)}, "
            f"or {other_run(folder, config)}"
        )


def command_to_continue(folder: RunFolder, config: Config | None = None) -> str:
    """Return the command that continues this run in processes like those of this job.

    It has the length of ``config`` if the run can have it.
    """
    length: list[str] = []
    if config is not None and _keeps_rates(folder, config):
        length = words_of_changes(started_settings(folder), settings_of(config), LENGTH) or []
    return " ".join([command_for_verbs(), "resume", quoted(folder.path), *map(quoted, length)])


def other_run(folder: RunFolder, config: Config) -> str:
    """Return the command that trains a run of its own with ``config``: a branch of this one, where it can be."""
    path, before, now = quoted(folder.path), started_settings(folder), settings_of(config)
    words, way = [f"--run.name {free_name(folder.path).name}"], "start another run"
    if Path(str(before["run.dir"])).resolve() != folder.path.parent.resolve():  # it was moved, or copied
        words.append(f"--run.dir {quoted(folder.path.parent)}")
    if _begins_elsewhere(folder, config) and now["run.from"] != before["run.from"]:
        changes = words_of_changes(before, now)
    else:
        if can_branch(before, now) and 0 < _steps_saved(folder) < _steps_asked(folder, config):
            words, way = [*words, f"--run.from {path}"], "branch it"
        changes = words_of_changes(before, {**now, "run.from": before["run.from"]})
    if changes is None:
        return f"{way}, by adding to {command_for_recipes()}: {' '.join(words)}"
    return f"{way}: {' '.join([f'{command_for_recipes()} {path}/{folder.config.name}', *words, *map(quoted, changes)])}"


def way_to_start_from_weights(folder: RunFolder) -> str:
    """Return the settings of a new run that starts from the final weights, after ";"; empty before they exist."""
    if not folder.final.is_file():
        return ""
    return f"; a new run starts from its weights with --run.name NEW --model.pretrained {quoted(folder.final)}"


def _begins_elsewhere(folder: RunFolder, config: Config) -> bool:
    """Whether a config asks to begin with a checkpoint of another run than this one."""
    run, _ = split_step(config.run.from_)
    named = (Path(config.run.dir) / run, expand_existing(run))
    return bool(run) and folder.path.resolve() not in [path.resolve() for path in named]


def _steps_saved(folder: RunFolder) -> int:
    """Return the step of the newest checkpoint, unverified; 0 if none exists."""
    return step_of(Path(folder.newest_checkpoint())) or 0


def _steps_asked(folder: RunFolder, config: Config) -> int:
    """Return the steps of a run with ``config`` on this run's data."""
    return config.train.last_step(_steps_per_epoch(folder, config))


def _steps_per_epoch(folder: RunFolder, config: Config) -> int:
    """Return the steps of an epoch of a run with ``config`` on this run's data."""
    from cifar_dist.data.order import steps_per_epoch  # imports torch, which takes seconds

    samples = folder.read_manifest().for_training(config.data.hold_out).samples("train")
    return steps_per_epoch(samples, config.train.batch_size)


def _keeps_rates(folder: RunFolder, config: Config) -> bool:
    """Whether the saved steps would have the same learning rates in a run that is as long as ``config``."""
    started, saved = read_started_settings(folder), _steps_saved(folder)
    if not saved or started.train.epochs == config.train.epochs:
        return True
    if plugins.is_spec(started.schedule.name):  # its code is not imported here
        return False
    return started.schedule.keeps_rates(
        saved,
        steps_per_epoch=_steps_per_epoch(folder, started),
        before=started.train.epochs,
        after=config.train.epochs,
    )
