"""A sweep: rows that are compared, each of runs that differ only in their seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cifar_dist.config import Config
from cifar_dist.config.changes import contradiction
from cifar_dist.config.plugin_copies import checksum_of
from cifar_dist.config.settings import settings_of
from cifar_dist.data.dataset_folder import FILE_NAME
from cifar_dist.data.manifest import Manifest
from cifar_dist.formatting import counted
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.kept_plugins import versions_used
from cifar_dist.run_folder.settings import started_settings


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: ``SWEEP.ROW.sSEED``.
        words: arguments of ``cifar-dist train``: recipe and overrides.
        config: the config that these arguments give.
    """

    name: str
    words: tuple[str, ...]
    config: Config

    @property
    def folder(self) -> RunFolder:
        return RunFolder.of(self.config)

    def is_finished(self) -> bool:
        """Whether its training has ended, and so has the evaluation on the split that the sweep asks for now.

        Raises:
            UserError: the folder's config is damaged.
        """
        return self.folder.is_finished(self.config.eval.split)

    def is_intact(self) -> bool:
        """Whether it is finished and its folder needs no repair either, so that a process would change nothing.

        Raises:
            UserError: as for the process; :func:`cifar_dist.sweeps.runner.check` names the run.
        """
        from cifar_dist.training.continuation import is_finished  # imports torch, which a table does not need

        return is_finished(self.config)

    def other_setting(self) -> tuple[str, str] | None:
        """A setting that its folder was started with and that the sweep has changed since, and both values in words.

        Raises:
            UserError: the folder's config is damaged.
        """
        if not self.folder.config.is_file():
            return None
        return contradiction(started_settings(self.folder), settings_of(self.config))

    def other_plugin(self) -> str:
        """The name of a plug-in's file or package that has changed since its folder's run used it; empty for none."""
        used = versions_used(self.folder.plugins, self.config)
        return next((Path(code).name for code, version in used.items() if checksum_of(code) not in ("", version)), "")

    def other_evaluation(self) -> str:
        """The setting of the evaluation that ended the run and that the sweep has changed since; empty for none."""
        summary = self.folder.final_summary()
        return summary.other_setting(self.config) if summary else ""

    def is_on_other_data(self) -> bool:
        """Whether its folder is of a run on other data than ``data.path`` has; False where that is unknown.

        Raises:
            UserError: one of the two manifests is damaged.
        """
        trained, now = self.folder.manifest, Path(self.config.data.path, FILE_NAME)
        if not (trained.is_file() and now.is_file()) or trained.read_bytes() == now.read_bytes():
            return False
        return bool(Manifest.load(now.parent).difference(self.folder.read_manifest()))


@dataclass(frozen=True)
class Row:
    """One line of the comparison: runs that differ only in their seed."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep: its rows in file order."""

    name: str
    rows: tuple[Row, ...]

    @property
    def runs(self) -> list[Run]:
        """All runs in the order in which they are trained: the first seed of every row, then the second."""
        return [run for seed in zip(*(row.runs for row in self.rows), strict=True) for run in seed]

    @property
    def size(self) -> str:
        """The number of runs, in words."""
        return counted(len(self.runs), "run")

    @property
    def all_finished(self) -> str:
        """What is said of it when nothing is left to do."""
        return f"all {self.size} are finished" if len(self.runs) > 1 else "its only run is finished"
