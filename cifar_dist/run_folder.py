"""The run folder: the paths in it, its state, and exclusive access to it.

Only rank 0 opens it. A second job of the same name is refused while the first is running, a resume that contradicts
the config of the run is refused with the key that differs, and a folder that cannot be written is reported before the
first step. Every path inside a run folder is defined here and nowhere else.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.config.changes import LENGTH, can_branch, contradiction, words_of_changes
from cifar_dist.data.manifest import FILE_NAME, Manifest
from cifar_dist.errors import InUseError, UserError, nearest
from cifar_dist.files import (
    changed_files,
    complete,
    copy_atomic,
    discard,
    exists,
    free_name,
    leftovers,
    read_json,
    write_atomic,
    write_sums,
)
from cifar_dist.plugin_copies import keep_copies

FINAL = "final"
"""Name of the weights at the end of training in evaluations."""

_LOCK = ".lock"
_LOCK_SECONDS = 0.5  # timeout for the lock; a process that only checks whether a run is in use holds it for far less


class EvaluationFolder:
    """Paths inside ``runs/NAME/evaluations/...``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary = path / "summary.json"
        self.submission = path / "submission.csv"
        self.probabilities = path / "probabilities.npz"
        self.weights = path / "model.safetensors"
        self.figures = path / "figures"


class RunFolder:
    """Paths inside ``runs/NAME``, and the state of the run that they show."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.started_config = path / ".started.toml"  # as the last start wrote config.toml, which users edit
        self.manifest = path / FILE_NAME
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.metrics_csv = path / "metrics.csv"
        self.log = path / "training.log"
        self.timeline = path / "timeline.jsonl"
        self.checkpoints = path / "checkpoints"
        self.final = path / "final" / "model.safetensors"
        self.evaluations = path / "evaluations"
        self.figures = path / "figures"
        self.report = path / "report.html"
        self.lr_curve = path / "lr_curve.json"
        self.plugins = path / "plugins"
        self.stop_file = path / "STOP"
        self.replays = path / "replays"
        self.certificate = path / "certificate.json"
        self.stalls = path / "stalls"
        self.profile = path / "profile"
        self.job_script = path / "job.sbatch"
        self._lock: IO[str] | None = None

    @property
    def essential(self) -> tuple[Path, ...]:
        """What a run cannot be used without, so that no verb may write its output there."""
        return (self.config, self.manifest, self.metrics, self.checkpoints, self.final.parent)

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self) -> bool:
        """Whether the folder is a run. Never raises, whatever the path."""
        return os.path.isfile(self.config)

    def is_of_this_program(self) -> bool:
        """Whether a process that trains has opened the folder. Any folder may have a file named ``config.toml``."""
        return (self.path / _LOCK).is_file()

    def has_foreign_files(self) -> bool:
        """Whether there are files that no run writes, such as notes of the user or other runs."""
        own = {path for path in vars(self).values() if isinstance(path, Path)} | {self.final.parent, self.path / _LOCK}
        return any(path not in own and path not in leftovers(self.path) for path in self.path.iterdir())

    def has_begun(self) -> bool:
        """Whether any metrics, checkpoint, final weights or range test exist."""
        kept = (*complete(self.checkpoints), *(path for path in (self.final, self.lr_curve) if path.exists()))
        return bool(kept) or (self.metrics.is_file() and self.metrics.stat().st_size > 0)

    def is_finished(self, split: str | None = None) -> bool:
        """Whether training has ended and so has the final evaluation, if the dataset has the split for it.

        Args:
            split: to evaluate at the end; None: that of the run's config.

        Raises:
            UserError: the config of the run is damaged.
        """
        if not self.final.is_file():
            return False
        if self.final_summary() is not None:
            return True
        splits = read_json(self.manifest).get("splits")
        return isinstance(splits, dict) and (split or recipe.read(self.config).eval.split) not in splits

    def supersede_final(self) -> None:
        """Rename the final weights and their evaluations after their step, so that the run is not finished any more."""
        step = ""
        for evaluation in self.evaluation_folders():
            summary = read_json(evaluation.summary)
            if summary.get("checkpoint") == FINAL:
                step = f"step-{summary.get('step', 0):08d}"
                write_atomic(evaluation.summary, json.dumps({**summary, "checkpoint": step}, indent=2) + "\n")
                write_sums(evaluation.path)
        if self.final.is_file():
            step = step or self.newest_checkpoint()
            self.final.parent.rename(free_name(self.path / f"{FINAL}-{step}"))

    def superseded(self) -> list[Path]:
        """List the final weights that :meth:`supersede_final` renamed."""
        return [path for path in complete(self.path) if path.name.startswith(f"{FINAL}-step-")]

    def final_summary(self) -> dict[str, object] | None:
        """Read the ``summary.json`` of the final evaluation; None before it is complete."""
        summaries = (read_json(evaluation.summary) for evaluation in self.evaluation_folders())
        return next((summary for summary in summaries if summary.get("checkpoint") == FINAL), None)

    def evaluation_folders(self) -> list[EvaluationFolder]:
        """List the run's evaluations by name, without those that a kill left incomplete."""
        return [EvaluationFolder(path) for path in complete(self.evaluations)]

    def leftovers(self) -> list[Path]:
        """List what a kill left incomplete outside ``checkpoints``, where one may be an intact checkpoint."""
        places = (self.path, self.evaluations, self.figures, self.plugins)
        return [path for place in places for path in leftovers(place)]

    def read_manifest(self) -> Manifest:
        """Read the manifest of the data that the run was trained on.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            if not self.manifest.is_file():
                raise UserError(f"{self.manifest} is missing")
            return Manifest.read(self.path)
        except UserError as error:
            raise UserError(f"{error}; copy the {FILE_NAME} of the run's dataset to {self.path}") from None

    def damaged_results(self) -> dict[Path, list[str]]:
        """Return the folders of the final weights and their evaluation in which files have changed, with these files.

        Both follow from the last checkpoint, so they can be written again.
        """
        finals = [one.path for one in self.evaluation_folders() if read_json(one.summary).get("checkpoint") == FINAL]
        return {path: changed for path in (self.final.parent, *finals) if (changed := changed_files(path))}

    def discard_damaged_results(self) -> list[str]:
        """Delete the :meth:`damaged_results`; return one line for each."""
        damaged = self.damaged_results()
        for path in damaged:
            discard(path)
        return [f"{path} is damaged ({', '.join(changed)}) and is written again" for path, changed in damaged.items()]

    def newest_checkpoint(self) -> str:
        """Return the name of the newest checkpoint, unverified; empty if none exists."""
        latest = self.checkpoints / "latest"
        return latest.readlink().name if latest.is_symlink() else ""

    def open(
        self, config: Config, manifest: Manifest, change_length: Callable[[Config], list[str]] | None = None
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
            self._refuse_foreign(config)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.lock(", or use another --run.name")
            for path in self.leftovers():
                discard(path)
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be written ({error.strerror}); choose another with --run.dir"
            ) from None
        notes = self._remove_old_stop_file()
        if exists(self.config):
            self.refuse_other_settings(config, besides=LENGTH if change_length else ())
            self.refuse_other_data(manifest)
            started = self.read_started()
            if change_length and contradiction(recipe.settings_of(started), recipe.settings_of(config)):
                notes += change_length(started)
        else:
            copy_atomic(manifest.root / FILE_NAME, self.manifest)
        notes += keep_copies(self.plugins, config)
        self.write_config(config)  # last, because it makes the folder a run
        return notes

    def write_config(self, config: Config) -> None:
        """Write the settings that a start of the run uses."""
        text = recipe.to_toml(config)
        write_atomic(self.config, text)
        write_atomic(self.started_config, text)

    def read_config(self) -> Config:
        """Read ``config.toml``, in which what changes no result may have been edited, and the length of the run.

        Raises:
            UserError: it is damaged, or was edited into other settings than the run was started with.
        """
        config = recipe.read(self.config)
        if found := contradiction(self._settings(), recipe.settings_of(config), LENGTH, str(self.config)):
            raise UserError(
                f"{self.path} was started with {found[1]}; write the first there again, or {self.other_run(config)}"
            )
        return config

    def read_started(self) -> Config:
        """Read the settings that the run was last started with, whatever ``config.toml`` was edited to since.

        Raises:
            UserError: they are damaged.
        """
        return recipe.read(self.started_config if self.started_config.is_file() else self.config)

    def lock(self, otherwise: str = "") -> None:
        """Lock the folder for as long as this object lives.

        Args:
            otherwise: what the user may do instead of waiting for the process that has locked it.

        Raises:
            InUseError: another process has locked it.
            OSError: the folder cannot be written.
        """
        lock = (self.path / _LOCK).open("a+")
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _locked(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise InUseError(f"{self.path} is in use by {holder}; wait until that has ended{otherwise}")
            time.sleep(0.01)
        self._lock = lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()

    def in_use(self) -> bool:
        """Whether a process is training this run."""
        try:
            with (self.path / _LOCK).open("r") as lock:
                return not _locked(lock, fcntl.LOCK_SH)
        except OSError:
            return False

    def _refuse_foreign(self, config: Config) -> None:
        if not exists(self.path):
            return
        if config.run.fresh:
            raise UserError(f"{self.path} exists and run.fresh is set; use another --run.name, or resume without it")
        # A process that ended before it wrote the config leaves the first three, a range test the others.
        expected = {self.checkpoints, self.manifest, self.plugins, self.lr_curve, self.figures}
        foreign = any(path not in expected and not path.name.startswith(".") for path in self.path.iterdir())
        if not exists(self.config) and (foreign or complete(self.checkpoints)):
            raise UserError(f"{self.path} exists and is not a run (no config.toml); use another --run.name")

    def _remove_old_stop_file(self) -> list[str]:
        """Remove a request to stop that was made before this process began; return a line to report."""
        try:
            if self.stop_file.stat().st_mtime >= psutil.Process().create_time():
                return []
            self.stop_file.unlink()
        except FileNotFoundError:
            return []
        return [f"removed {self.stop_file}, which asked an earlier process to stop"]

    def refuse_other_settings(self, config: Config, besides: Sequence[str] = ()) -> None:
        """Refuse a ``config`` that cannot resume this run.

        Args:
            config: the run that is asked for.
            besides: keys that may differ too.

        Raises:
            UserError: ``config``, or the run's ``config.toml`` as it is now, contradicts a setting of the run; the
                message names the first, and the commands that continue the run as it was and that start another one.
        """
        self.read_config()
        if found := contradiction(self._settings(), recipe.settings_of(config), besides):
            key, words = found
            raise UserError(
                f"{self.path} was started with {words}; leave {key} as it was: {self.resume_command(config)}, "
                f"or {self.other_run(config)}"
            )

    def resume_command(self, config: Config | None = None) -> str:
        """Return the command that continues this run, with the length of ``config``."""
        length = words_of_changes(self._settings(), recipe.settings_of(config), LENGTH) if config else []
        return " ".join(["cifar-dist resume", shlex.quote(str(self.path)), *(length or [])])

    def other_run(self, config: Config) -> str:
        """Return the command that trains a run of its own with ``config``: a branch of this one, where it can be."""
        path, before, now = shlex.quote(str(self.path)), self._settings(), recipe.settings_of(config)
        words, way = [f"--run.name {free_name(self.path).name}"], "start another run"
        if can_branch(before, now) and 0 < self._steps_saved() < self._steps_asked(config):
            words, way = [*words, f"--run.from {path}"], "branch it"
        changes = words_of_changes(before, {**now, "run.from": before["run.from"]})
        if changes is None:
            return f"{way}, by adding to cifar-dist train: {' '.join(words)}"
        return f"{way}: {' '.join([f'cifar-dist train {path}/{self.config.name}', *words, *changes])}"

    def _steps_saved(self) -> int:
        """Return the step of the newest checkpoint, unverified; 0 if none exists."""
        return int(self.newest_checkpoint().partition("-")[2] or 0)

    def _steps_asked(self, config: Config) -> int:
        """Return the steps of a run with ``config`` on this run's data."""
        from cifar_dist.data.order import steps_per_epoch  # imports torch, which takes seconds

        samples = self.read_manifest().for_training(config.data.hold_out).samples("train")
        return config.train.last_step(steps_per_epoch(samples, config.train.batch_size))

    def _settings(self) -> Mapping[str, object]:
        return recipe.settings_of(self.read_started())

    def refuse_missing_data(self, path: str, option: str) -> None:
        """Require that the run's dataset is here.

        Args:
            path: where it should be.
            option: that names another place.

        Raises:
            UserError: there is no folder.
        """
        if not Path(path).is_dir():
            raise UserError(f"{path}, the dataset of {self.path}, does not exist here; name it with {option} DIR")

    def refuse_other_data(self, manifest: Manifest) -> None:
        """Refuse data that this run was not started on.

        Raises:
            UserError: the packed bytes differ, or the run's manifest is missing or damaged.
        """
        started = self.read_manifest()
        if started.fingerprint != manifest.fingerprint:
            raise UserError(
                f"{self.path} was started on other data than {manifest.root} now has "
                f"({started.fingerprint}, now {manifest.fingerprint}); use another --run.name"
                f"{self.way_to_start_from_weights()}"
            )

    def way_to_start_from_weights(self) -> str:
        """Return the settings of a new run that starts from the final weights, after ";"; empty before they exist."""
        if not self.final.is_file():
            return ""
        return f"; a new run starts from its weights with --run.name NEW --model.pretrained {self.final}"


def find_run(run: str, parent: Path = Path("runs"), checkpoint: str = "") -> Path:
    """Return the folder of a run, given by name or path.

    Args:
        run: the name or path.
        parent: folder of the runs that are known by name.
        checkpoint: how the user names a checkpoint of the run here, for who gives the path of one.

    Raises:
        UserError: it does not exist; the message suggests the nearest name.
    """
    for path in (parent / run, Path(run).expanduser()):
        if RunFolder(path).exists():
            return path
    for path in Path(run).expanduser().parents:
        if RunFolder(path).exists():
            way = f", and its checkpoint {checkpoint}" if checkpoint else ""
            raise UserError(f"'{run}' is inside the run {path}; name the run{way}")
    known = [path.name for path in complete(parent) if RunFolder(path).exists()]
    hint = nearest(run, known) if known else f"{parent} has no run yet; train one first"
    raise UserError(f"run '{run}' does not exist; {hint}")


def _locked(file: IO[str], how: int) -> bool:
    """Lock an open file without waiting; return whether no other process has locked it."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: train unguarded rather than not at all
    return True
