"""The run folder: the paths in it, its state, and exclusive access to it.

Only rank 0 opens it. A second job of the same name is refused while the first is running, a resume that contradicts
the config of the run is refused with the key that differs, and a folder that cannot be written is reported before the
first step. Every path inside a run folder is defined here and nowhere else.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.data.manifest import FILE_NAME, Manifest
from cifar_dist.errors import UserError
from cifar_dist.files import copy_atomic, read_json, write_atomic
from cifar_dist.plugin_copies import keep_copies

CHANGEABLE_ON_RESUME = (
    "run.name",
    "run.dir",
    "run.fresh",
    "run.processes",
    "data.path",
    "data.resident_mb",
    "data.read_ahead",
    "train.compile",
    "train.engine",
    "train.threads",
    "eval",
    "checkpoint",
    "tracking",
)
"""Keys and sections that a resume may change: they affect how a run is tracked and stored, not what it computes."""

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
        self.replays = path / "replays"
        self.certificate = path / "certificate.json"
        self._lock: IO[str] | None = None

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self) -> bool:
        """Whether the folder is a run. Never raises, whatever the path."""
        return os.path.isfile(self.config)

    def has_begun(self) -> bool:
        """Whether any metrics, checkpoint, final weights or range test exist."""
        kept = (*self.checkpoints.glob("*"), *(path for path in (self.final, self.lr_curve) if path.exists()))
        return bool(kept) or (self.metrics.is_file() and self.metrics.stat().st_size > 0)

    def is_finished(self) -> bool:
        """Whether training has ended and so has the final evaluation, if the dataset has the split for it.

        Raises:
            UserError: the config of the run is damaged.
        """
        if not self.final.is_file():
            return False
        if self.final_summary() is not None:
            return True
        splits = read_json(self.manifest).get("splits")
        return isinstance(splits, dict) and recipe.read(self.config).eval.split not in splits

    def final_summary(self) -> dict[str, object] | None:
        """Read the ``summary.json`` of the final evaluation; None before it is complete."""
        summaries = (read_json(evaluation.summary) for evaluation in self.evaluation_folders())
        return next((summary for summary in summaries if summary.get("checkpoint") == FINAL), None)

    def evaluation_folders(self) -> list[EvaluationFolder]:
        """List the run's evaluations by name, without those that a kill left incomplete."""
        return [EvaluationFolder(path) for path in sorted(self.evaluations.glob("[!.]*"))]

    def newest_checkpoint(self) -> str:
        """Return the name of the newest checkpoint, unverified; empty if none exists."""
        latest = self.checkpoints / "latest"
        return latest.readlink().name if latest.is_symlink() else ""

    def open(self, config: Config, manifest: Manifest) -> list[str]:
        """Create the folder, or open an existing one to resume, and lock it.

        Returns:
            One line for each plug-in file that has changed since the run last started.

        Raises:
            UserError: it exists and ``run.fresh`` is set, belongs to another config or dataset, is in use, or
                cannot be written.
        """
        try:
            self._refuse_foreign(config)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.lock()
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be written ({error.strerror}); choose another with --run.dir"
            ) from None
        if self.config.is_file():
            self.refuse_other_settings(config)
            self._refuse_other_data(manifest)
        else:
            copy_atomic(manifest.root / FILE_NAME, self.manifest)
        notes = keep_copies(self.plugins, config)
        write_atomic(self.config, recipe.to_toml(config))  # last, because this file makes the folder a run
        return notes

    def lock(self) -> None:
        """Lock the folder for as long as this object lives.

        Raises:
            UserError: another process has locked it.
            OSError: the folder cannot be written.
        """
        lock = (self.path / _LOCK).open("a+")
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _locked(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise UserError(f"{self.path} is in use by {holder}; wait for it, or use another --run.name")
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
        if not self.path.exists():
            return
        if config.run.fresh:
            raise UserError(f"{self.path} exists and run.fresh is set; use another --run.name, or resume without it")
        # A process that ended before it wrote the config leaves the first three, a range test the others.
        expected = {self.checkpoints, self.manifest, self.plugins, self.lr_curve, self.figures}
        foreign = any(path not in expected and not path.name.startswith(".") for path in self.path.iterdir())
        if not self.config.is_file() and (foreign or any(self.checkpoints.glob("*"))):
            raise UserError(f"{self.path} exists and is not a run (no config.toml); use another --run.name")

    def refuse_other_settings(self, config: Config) -> None:
        """Refuse a ``config`` that cannot resume this run.

        Raises:
            UserError: ``config`` contradicts a setting of the run; the message names the first.
        """
        if found := contradiction(recipe.read(self.config), config):
            key, words = found
            raise UserError(
                f"{self.path} was started with {words}; use another --run.name, or leave {key} as it was"
                f"{'' if key.startswith('model.') else self._way_to_start_from_weights()}"
            )

    def _refuse_other_data(self, manifest: Manifest) -> None:
        started = Manifest.load(self.path)
        if started.fingerprint != manifest.fingerprint:
            raise UserError(
                f"{self.path} was started on other data than {manifest.root} now has "
                f"({started.fingerprint}, now {manifest.fingerprint}); use another --run.name"
                f"{self._way_to_start_from_weights()}"
            )

    def _way_to_start_from_weights(self) -> str:
        """Return the settings of a new run that starts from the final weights; empty before they exist."""
        if not self.final.is_file():
            return ""
        return f"; a new run starts from its weights with --run.name NEW --model.pretrained {self.final}"


def _locked(file: IO[str], how: int) -> bool:
    """Lock an open file without waiting; return whether no other process has locked it."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: train unguarded rather than not at all
    return True


def contradiction(started: Config, asked: Config) -> tuple[str, str] | None:
    """Return the first setting that a resume may not change but does, and the difference in words; None for none."""
    before, now = (recipe.settings_of(config) for config in (started, asked))
    # Settings that both configs have come first: with another optimizer, its name precedes the settings it brings.
    for key in sorted(before.keys() | now.keys(), key=lambda key: (key not in before or key not in now, key)):
        if before.get(key) != now.get(key) and not _may_change(key):
            return key, f"{key} = {_format(before.get(key))} and this command says {_format(now.get(key))}"
    return None


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in CHANGEABLE_ON_RESUME)


def _format(value: object) -> str:
    return "nothing" if value is None else json.dumps(value)
