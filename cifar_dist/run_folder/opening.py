"""Open the folder of a run: create it, or check that a config and its data resume it, and lock it. For rank 0.

A second job of the same name is refused while the first is running, and a folder that cannot be written is reported
before the first step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from cifar_dist.config import Config
from cifar_dist.config.changes import LENGTH, contradiction
from cifar_dist.config.saved import way_to_repair
from cifar_dist.config.settings import settings_of
from cifar_dist.data.dataset_folder import FILE_NAME
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.files.atomic import copy_atomic
from cifar_dist.files.folders import discard, exists, is_writable, list_complete
from cifar_dist.launch.launched import has_restarted, times_restarted
from cifar_dist.run_folder.folder import LOCK_SECONDS, RunFolder
from cifar_dist.run_folder.kept_plugins import keep_versions
from cifar_dist.run_folder.settings import (
    read_started_settings,
    refuse_other_settings,
    way_to_start_from_weights,
    write_settings,
)

_LEASE_SECONDS = 120.0  # after which NFS usually forgets a machine that does not answer (90 s), and some more
_CLOCK_TICK_SECONDS = 1.0  # in which the stamps of two files may be the wrong way round
_BOOT_TIME_SECONDS = 1.0  # to which the system rounds the time that processes are counted from


def open_folder(
    folder: RunFolder, config: Config, manifest: Manifest, change_length: Callable[[Config], list[str]] | None = None
) -> list[str]:
    """Create the folder, or open an existing one to resume, and lock it.

    Args:
        config: the run.
        manifest: its data.
        change_length: called with the config of an existing run of another length, see :data:`LENGTH`; it checks
            and records the change, and returns lines to report. None refuses it.

    Returns:
        One line for each plug-in file that has changed since the run last started, and for other news.

    Raises:
        UserError: it exists and ``run.fresh`` is set, belongs to another config or dataset, or cannot be written.
        InUseError: another process is training it.
        OSError: a file in it cannot be read or written.
    """
    try:
        _refuse_foreign(folder, config)
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        # A file server keeps the locks of a machine that is lost, until it knows.
        folder.lock(", or use another --run.name", patience=_LEASE_SECONDS if has_restarted() else LOCK_SECONDS)
        for path in folder.leftovers():
            discard(path)
    except OSError as error:
        remedy = "copy the run to where you may write" if folder.exists() else "choose another with --run.dir"
        raise UserError(f"the run folder {folder.path} cannot be written ({error.strerror}); {remedy}") from None
    notes = _remove_old_stop_file(folder)
    if exists(folder.config):
        refuse_other_settings(folder, config, besides=LENGTH if change_length else ())
        refuse_other_data(folder, manifest)
        if not folder.final.is_file():
            folder.supersede_final_evaluations()
        started = read_started_settings(folder)
        if change_length and contradiction(settings_of(started), settings_of(config)):
            notes += change_length(started)
    else:
        copy_atomic(manifest.root / FILE_NAME, folder.manifest)
    notes += keep_versions(folder.plugins, config)
    write_settings(folder, config)  # last, because it makes the folder a run
    return notes


def refuse_missing_data(folder: RunFolder, path: str, option: str) -> None:
    """Refuse to use a run whose dataset is not here.

    Args:
        path: where it should be.
        option: that names another place.

    Raises:
        UserError: the folder does not exist.
    """
    if not Path(path).is_dir():
        place = " here" if Path(path).is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"{path}, the dataset of {folder.path}, does not exist{place}; name it with {option} DIR")


def refuse_read_only(folder: RunFolder, place: Path, what: str) -> None:
    """Refuse to compute what the run folder could not receive.

    Args:
        folder: the run.
        place: the folder in it that receives the result; the run's own receives it where this does not exist.
        what: the result, for the error.

    Raises:
        UserError: it cannot be written.
    """
    place = place if place.is_dir() else folder.path
    if not is_writable(place):
        raise UserError(f"{place} cannot be written, where {what} goes; copy the run to where you may write")


def refuse_other_data(folder: RunFolder, manifest: Manifest, otherwise: str = "") -> None:
    """Refuse data that this run was not started on.

    Args:
        folder: the run.
        manifest: the data.
        otherwise: what the user may do to use this data, where the run cannot get another name.

    Raises:
        UserError: they differ, see :meth:`Manifest.difference`, or the run's manifest is missing or damaged.
    """
    if difference := manifest.difference(folder.read_manifest()):
        otherwise = otherwise or f"use another --run.name{way_to_start_from_weights(folder)}"
        raise UserError(
            f"{folder.path} was started on other data than {manifest.root} now has {difference}; name those with "
            f"--data.path, or {otherwise}"
        )


def _refuse_foreign(folder: RunFolder, config: Config) -> None:
    if not exists(folder.path):
        return
    if config.run.fresh and folder.exists() and not _began_in_this_job(folder):
        raise UserError(f"{folder.path} exists and run.fresh is set; use another --run.name, or resume without it")
    # A process that ended before it wrote the config leaves the first three, a range test the others.
    expected = {folder.checkpoints, folder.manifest, folder.plugins, folder.lr_curve, folder.figures}
    foreign = any(path not in expected and not path.name.startswith(".") for path in folder.path.iterdir())
    if not exists(folder.config) and (foreign or list_complete(folder.checkpoints)):
        remedy = way_to_repair(folder.config) or "; use another --run.name"
        raise UserError(f"{folder.path} exists and is not a run (no {folder.config.name}){remedy}")


def _began_in_this_job(folder: RunFolder) -> bool:
    """Whether the run is one of this job, whose ranks torchrun has started again with the same words."""
    torchrun = psutil.Process().parent() if times_restarted() else None
    if torchrun is None or not exists(folder.manifest):
        return False
    return bool(folder.manifest.stat().st_mtime >= torchrun.create_time())


def _remove_old_stop_file(folder: RunFolder) -> list[str]:
    """Remove a request to stop that was made before this process began; return a line to report.

    It holds where the same job has started this process again: it was made since, as the first process removed others.
    """
    if has_restarted() or not folder.stop_file.is_file():
        return []
    # Ages, for the files may be a server's, with a clock of its own. A clock that went back left one from the future.
    age = folder.clock() - folder.stop_file.stat().st_mtime
    own_age = time.time() - psutil.Process().create_time()
    if -_CLOCK_TICK_SECONDS <= age <= own_age - _BOOT_TIME_SECONDS:
        return []
    folder.stop_file.unlink()
    return [f"removed {folder.stop_file}, which asked an earlier process to stop"]
