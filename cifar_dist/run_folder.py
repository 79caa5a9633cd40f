"""The run folder: where a run's whole story lies, and who may write it.

Rank 0 alone opens it. A second job of the same name is refused while the first lives, a resume that contradicts the
config that the run was started with is refused by key, and a folder that cannot be written is reported before the
first step. Every path inside a run folder is spelled here and nowhere else.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO, Any

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
"""Keys and sections that may differ between two starts of one run: they change how it is watched and kept, not what it
computes."""

FINAL = "final"
"""What the weights at the end of training are called in evaluations."""

_LOCK = ".lock"
_LOCK_SECONDS = 0.5  # to wait for the lock: a process that only checks whether a run is in use holds it for far less


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
    """Paths inside ``runs/NAME``, and what they say about the run."""

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
        self._lock: IO[str] | None = None

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self) -> bool:
        """Whether a run is here. Never an error, whatever the path."""
        return os.path.isfile(self.config)

    def began(self) -> bool:
        """Whether anything was measured or kept."""
        kept = (*self.checkpoints.glob("*"), *(path for path in (self.final, self.lr_curve) if path.exists()))
        return bool(kept) or (self.metrics.is_file() and self.metrics.stat().st_size > 0)

    def is_finished(self) -> bool:
        """Whether training ended and so did the evaluation after it, if the dataset has the split for it.

        Raises:
            UserError: the config of the run is damaged.
        """
        if not self.final.is_file():
            return False
        if self.final_summary() is not None:
            return True
        splits = read_json(self.manifest).get("splits")
        return isinstance(splits, dict) and recipe.read(self.config).eval.split not in splits

    def final_summary(self) -> dict[str, Any] | None:
        """``summary.json`` of the evaluation that ended the run; None before it is complete."""
        summaries = (read_json(evaluation.summary) for evaluation in self.evaluation_folders())
        return next((summary for summary in summaries if summary.get("checkpoint") == FINAL), None)

    def evaluation_folders(self) -> list[EvaluationFolder]:
        """The run's evaluations by name, without those that a kill left half-written."""
        return [EvaluationFolder(path) for path in sorted(self.evaluations.glob("[!.]*"))]

    def newest_checkpoint(self) -> str:
        """Name of the newest checkpoint, empty if there is none; it is not verified."""
        latest = self.checkpoints / "latest"
        return latest.readlink().name if latest.is_symlink() else ""

    def open(self, config: Config, manifest: Manifest) -> list[str]:
        """Create the folder, or enter an existing one.

        Returns:
            one line for each plug-in file that has changed since the last start.

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
        write_atomic(self.config, recipe.to_toml(config))  # last: it is what makes the folder a run
        return notes

    def lock(self) -> None:
        """Keep every other process out, for as long as this object lives.

        Raises:
            UserError: another one is in.
            OSError: the folder cannot be written.
        """
        lock = (self.path / _LOCK).open("a+")
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _locked(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise UserError(f"{self.path} is in use by {holder}; wait for it, or choose another --run.name")
            time.sleep(0.01)
        self._lock = lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()

    def in_use(self) -> bool:
        """Whether a process trains here now."""
        try:
            with (self.path / _LOCK).open("r") as lock:
                return not _locked(lock, fcntl.LOCK_SH)
        except OSError:
            return False

    def _refuse_foreign(self, config: Config) -> None:
        if not self.path.exists():
            return
        if config.run.fresh:
            raise UserError(f"{self.path} exists and run.fresh is set; choose another --run.name, or resume without it")
        # A start that ended before it wrote the config leaves the first three, a range test the others.
        begun = {self.checkpoints, self.manifest, self.plugins, self.lr_curve, self.figures}
        foreign = any(path not in begun and not path.name.startswith(".") for path in self.path.iterdir())
        if not self.config.is_file() and (foreign or any(self.checkpoints.glob("*"))):
            raise UserError(f"{self.path} exists and is not a run (no config.toml); choose another --run.name")

    def refuse_other_settings(self, config: Config) -> None:
        """Check that ``config`` may resume the run that is here.

        Raises:
            UserError: the run was started with a setting that ``config`` contradicts; the message names the first.
        """
        if found := contradiction(recipe.read(self.config), config):
            key, words = found
            raise UserError(
                f"{self.path} was started with {words}; choose another --run.name, or leave {key} as it was"
            )

    def _refuse_other_data(self, manifest: Manifest) -> None:
        started = Manifest.load(self.path)
        if started.fingerprint != manifest.fingerprint:
            raise UserError(
                f"{self.path} was started on other data than {manifest.root} now holds "
                f"({started.fingerprint}, now {manifest.fingerprint}); choose another --run.name"
            )


def _locked(file: IO[str], how: int) -> bool:
    """Lock an open file without waiting; false when another process has it."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: better unguarded than no run at all
    return True


def contradiction(started: Config, asked: Config) -> tuple[str, str] | None:
    """The first setting in which a resume differs and may not, and the difference in words; None for none."""
    before, now = (recipe.settings_of(config) for config in (started, asked))
    # Another optimizer has other settings too: what both have, its name among it, comes first.
    for key in sorted(before.keys() | now.keys(), key=lambda key: (key not in before or key not in now, key)):
        if before.get(key) != now.get(key) and not _may_change(key):
            return key, f"{key} = {_shown(before.get(key))} and this command says {_shown(now.get(key))}"
    return None


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in CHANGEABLE_ON_RESUME)


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)
