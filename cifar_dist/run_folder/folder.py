"""The run folder: the paths in it, its state, and exclusive access to it.

The files and folders directly inside a run folder are named here; a part of one by the module that writes it.
:mod:`cifar_dist.checkpoint`, which knows no runs, repeats two: ``.checkpoints.saved`` and ``final/model.safetensors``.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cifar_dist.config import Config
from cifar_dist.config.plugin_copies import FOLDER_NAME
from cifar_dist.config.saved import CONFIG_NAME, STARTED_NAME, read_config
from cifar_dist.data.dataset_folder import FILE_NAME
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import InUseError, TrainingFailedError, UserError, quoted
from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.checksums import changed_files, write_sums
from cifar_dist.files.folders import discard, free_name, hide, list_complete
from cifar_dist.files.locks import try_lock
from cifar_dist.files.open_files import path_of
from cifar_dist.files.reading import read_json
from cifar_dist.files.temporary import abandoned
from cifar_dist.launch.launched import machine_name
from cifar_dist.run_folder.evaluation import FINAL, EvaluationFolder
from cifar_dist.run_folder.summary import EvaluationSummary, read_summary
from cifar_dist.step_folder import step_name, step_of
from cifar_dist.terminal.notice import notice

_LOCK = ".lock"
LOCK_SECONDS = 0.5
"""Timeout for the lock; a process that only checks whether a run is in use holds it for far less."""


def sum_beside(path: Path) -> Path:
    """Where the checksum of a file that is appended to is kept."""
    return path.with_name(f".{path.name}.sha256")


class RunFolder:
    """Paths inside ``runs/NAME``, and the state of the run that they show."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG_NAME
        self.started_config = path / STARTED_NAME  # as the last start wrote config.toml, which users edit
        self.manifest = path / FILE_NAME
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.metrics_sum = sum_beside(self.metrics)
        self.metrics_csv = path / "metrics.csv"
        self.log = path / "training.log"
        self.timeline = path / "timeline.jsonl"
        self.checkpoints = path / "checkpoints"
        self.saved = path / ".checkpoints.saved"  # of checkpoint.history
        self.final = path / FINAL / "model.safetensors"
        self.evaluations = path / "evaluations"
        self.figures = path / "figures"
        self.report = path / "report.html"
        self.lr_curve = path / "lr_curve.json"
        self.lr_curve_picture = self.figures / "lr_curve.png"
        self.plugins = path / FOLDER_NAME
        self.stop_file = path / "STOP"
        self.replays = path / "replays"
        self.certificate = path / "certificate.json"
        self.stalls = path / "stalls"
        self.profile = path / "profile"
        self.job_script = path / "job.sbatch"
        self.wandb = path / "wandb"
        self.wandb_identity = path / "wandb.json"
        self._lock: IO[str] | None = None

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        """The folder of the run that a config asks for."""
        return cls(Path(config.run.dir) / config.run.name)

    @property
    def essential(self) -> tuple[Path, ...]:
        """What a run cannot be used without, its records and its results, so that no verb writes its output there."""
        used = (self.config, self.started_config, self.manifest, self.plugins, self.saved, self.path / _LOCK)
        records = (self.metrics, self.metrics_sum, self.environment, self.log, self.timeline)
        results = (self.lr_curve, self.certificate, self.wandb_identity, self.job_script)
        return (*used, *records, *results, self.checkpoints, self.final.parent, self.evaluations)

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self) -> bool:
        """Whether the folder is a run. Never raises, whatever the path."""
        return os.path.isfile(self.config)

    def is_of_this_program(self) -> bool:
        """Whether a process that trains has opened the folder. Any folder may have a file named ``config.toml``."""
        return (self.path / _LOCK).is_file()

    def has_range_test_only(self) -> bool:
        """Whether there is nothing but what ``lr-find`` has written, beside which a run of this name may begin."""
        return self.lr_curve.is_file() and {self.lr_curve, self.figures}.issuperset(self.path.iterdir())

    def has_foreign_files(self) -> bool:
        """Whether there are files that no run writes, such as notes of the user or other runs."""
        own = {path for path in vars(self).values() if isinstance(path, Path)} | {self.final.parent, self.path / _LOCK}
        return not own.issuperset(set(self.path.iterdir()) - set(abandoned(self.path)))

    def is_finished(self, split: str | None = None) -> bool:
        """Whether training has ended and so has the final evaluation, if the dataset has the split for it.

        Args:
            split: to evaluate at the end; None: that of the run's config.

        Raises:
            UserError: the config of the run is damaged.
        """
        if not self.final.is_file():
            return False
        if self.final_evaluation() is not None:
            return True
        splits = read_json(self.manifest).get("splits")
        return isinstance(splits, dict) and (split or read_config(self.config).eval.split) not in splits

    def supersede_final(self) -> None:
        """Rename the final weights and their evaluations after their step, so that the run is not finished any more.

        The weights come first: :meth:`supersede_final_evaluations` completes the rest after a kill.
        """
        if self.final.is_file():
            summary = self.final_summary()
            step = step_name(summary.step or 0) if summary else self.newest_checkpoint()
            self.final.parent.rename(free_name(self.path / f"{FINAL}-{step}"))
        self.supersede_final_evaluations()

    def supersede_final_evaluations(self) -> None:
        """Rename the evaluations of final weights that do not exist any more, where a kill has not let that end.

        One has its old name until its files are complete, so that the next call finds it again.
        """
        for evaluation in self.evaluation_folders():
            summary = read_summary(evaluation.summary)
            if summary is None:
                continue
            step = step_name(summary.step or 0)
            is_begun = evaluation.is_named_final and summary.checkpoint == step
            if summary.checkpoint == FINAL or is_begun:
                for left in abandoned(evaluation.path):
                    discard(left)
                content = {**read_json(evaluation.summary), "checkpoint": step}
                write_atomic(evaluation.summary, json.dumps(content, indent=2) + "\n")
                write_sums(evaluation.path)
                evaluation.rename_final(step)

    def superseded(self) -> list[Path]:
        """List the final weights that :meth:`supersede_final` renamed."""
        return [path for path in list_complete(self.path) if path.name.startswith(f"{FINAL}-step-")]

    def final_summary(self) -> EvaluationSummary | None:
        """Read the ``summary.json`` of the final evaluation; None before it is complete."""
        evaluation = self.final_evaluation()
        return read_summary(evaluation.summary) if evaluation else None

    def final_evaluation(self) -> EvaluationFolder | None:
        """Return the evaluation that ended the run; None before it is complete, and if its summary is damaged."""
        return next(iter(self._evaluations_of_final()), None)

    def _evaluations_of_final(self) -> list[EvaluationFolder]:
        read = ((one, read_summary(one.summary)) for one in self.evaluation_folders())
        return [one for one, summary in read if summary is not None and summary.checkpoint == FINAL]

    def evaluation_folders(self) -> list[EvaluationFolder]:
        """List the run's evaluations, the oldest first, without those that a kill left incomplete.

        Names have whole seconds; an extended run has renamed its earlier final ones, so the last to say so is newer.
        """
        found = map(EvaluationFolder, list_complete(self.evaluations))
        return sorted(found, key=lambda folder: (folder.written, folder.is_named_final))

    def leftovers(self) -> list[Path]:
        """List what a kill left incomplete outside ``checkpoints``, where one may be an intact checkpoint.

        Not what an evaluation or a report writes now: neither locks the run.
        """
        places = (self.path, self.evaluations, self.figures, self.plugins)
        return [path for place in places for path in abandoned(place)]

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
            raise UserError(f"{error}; {self._way_to_restore_manifest()}") from None

    def _way_to_restore_manifest(self) -> str:
        with contextlib.suppress(UserError, OSError):  # a dataset that cannot be reached does not help
            manifest = Path(read_config(self.config).data.path, FILE_NAME)
            if manifest.is_file():
                return f"if {manifest.parent} has not changed since: cp {quoted(manifest)} {quoted(self.manifest)}"
        return f"copy the {FILE_NAME} of the run's dataset to {self.path}"

    def damaged_results(self) -> dict[Path, list[str]]:
        """Return the folders of the final weights and their evaluation in which files have changed, with these files.

        Both follow from the last checkpoint, so they can be written again.
        """
        finals = self._evaluations_of_final() or self._illegible_evaluations_of_final()
        places = (self.final.parent, *(one.path for one in finals))
        return {path: changed for path in places if (changed := changed_files(path))}

    def _illegible_evaluations_of_final(self) -> list[EvaluationFolder]:
        """List the evaluations whose summary has changed and which are, by their name, those of the final weights."""
        found = self.evaluation_folders() if self.final.is_file() else []
        return [one for one in found if one.is_named_final and one.summary.name in changed_files(one.path)]

    def discard_damaged_results(self) -> list[str]:
        """Delete the :meth:`damaged_results`; return one line for each."""
        damaged = self.damaged_results()
        for path in damaged:
            discard(path)
        return [f"{path} is damaged ({', '.join(changed)}) and is written again" for path, changed in damaged.items()]

    def newest_checkpoint(self) -> str:
        """Return the name of the newest checkpoint, unverified; empty if none exists."""
        latest = self.checkpoints / "latest"
        if latest.is_symlink():
            return latest.readlink().name
        # Its file system has no links, or a copy has followed them.
        found = list_complete(self.checkpoints) if self.checkpoints.is_dir() else []
        steps = {step: path.name for path in found if (step := step_of(path)) is not None and path.is_dir()}
        return steps[max(steps)] if steps else ""

    def lock(self, otherwise: str = "", *, patience: float = LOCK_SECONDS) -> None:
        """Lock the folder for as long as this object lives; :meth:`locked` is for less.

        Args:
            otherwise: what the user may do instead of waiting for the process that has locked it.
            patience: seconds to wait for that process.

        Raises:
            InUseError: another process has locked it.
            OSError: the folder cannot be written.
        """
        lock = (self.path / _LOCK).open("a+")
        deadline, is_said = time.monotonic() + patience, False
        while not try_lock(lock):
            left = deadline - time.monotonic()
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            if left < 0:
                otherwise += self._way_to_unlock(holder)
                raise InUseError(f"{self.path} is in use by {holder}; wait until that has ended{otherwise}")
            if left > LOCK_SECONDS and not is_said:
                notice(f"waiting up to {left:.0f} s for {self.path}, which {holder} has locked")
                is_said = True
            time.sleep(0.01)
        self._lock = lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {machine_name()}")
        lock.flush()

    def clock(self) -> float:
        """The time, in seconds, by the clock that stamps the folder's files, which may be a server's; it is locked."""
        assert self._lock is not None
        os.utime(self._lock.fileno())
        return os.fstat(self._lock.fileno()).st_mtime

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The folder is locked inside, see :meth:`lock`."""
        self.lock()
        try:
            yield
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def discard(self) -> OSError | None:
        """Delete the folder and unlock it, see :func:`cifar_dist.files.folders.discard`.

        NFS keeps a file that is deleted while it is open, so the lock ends first, once the folder has a hidden name.
        """
        hidden = hide(self.path)
        self._unlock()
        return discard(hidden)

    def discard_all_but_range_test(self) -> None:
        """Delete what ``lr-find`` has not written, and unlock the folder, which is not a run any more."""
        lock = self.path / _LOCK
        for path in set(self.path.iterdir()) - {self.lr_curve, self.figures, self.config, lock}:
            discard(path)
        discard(self.config)  # without it, a folder that has the others is refused
        self._unlock()  # first, see :meth:`discard`
        discard(lock)

    def _way_to_unlock(self, holder: str) -> str:
        """Say what to do if the machine of the process that has locked the folder is lost: some servers never know."""
        _, is_named, machine = holder.rpartition(" on ")
        if not is_named or machine == machine_name():
            return ""
        return f"; only if {machine} is lost: rm {quoted(self.path / _LOCK)}"

    def is_where_it_was(self) -> bool:
        """Whether the path leads to the folder that :meth:`lock` locked; True for one that is not locked."""
        if self._lock is None:
            return True
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), (self.path / _LOCK).stat())
        except FileNotFoundError:
            return path_of(self._lock.fileno()) is None and self.config.is_file()  # only the lock was deleted
        except OSError:  # whoever writes next reports it
            return True

    def follow(self) -> str:
        """Link the path to the locked folder if that was renamed; return a line to report, empty if there is none.

        Call it before each write of a training: otherwise the write would create a folder that is not a run, or end up
        in another run.

        Raises:
            TrainingFailedError: the folder was deleted, or its name is taken.
        """
        if self.is_where_it_was():
            return ""
        assert self._lock is not None
        lock = path_of(self._lock.fileno())
        if lock is None:
            raise TrainingFailedError(f"{self.path} was deleted while the run was training, or renamed elsewhere")
        actual = lock.parent
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_symlink() and not self.path.exists():  # of an earlier rename
                self.path.unlink()
            self.path.symlink_to(actual)
        except OSError as error:
            reason = "its old name is taken" if isinstance(error, FileExistsError) else error.strerror
            raise TrainingFailedError(
                f"{self.path} was renamed to {actual} while the run was training, and {reason}; "
                f"resume it with: cifar-dist resume {quoted(actual)}"
            ) from None
        return (
            f"{self.path} was renamed to {actual}, where this run continues through a link with the old name; "
            "delete the link when the run has ended"
        )

    def in_use(self) -> bool:
        """Whether a process is training this run."""
        try:
            with (self.path / _LOCK).open("r") as lock:
                return not try_lock(lock, shared=True)
        except OSError:
            return False
