"""A run as a Slurm job: its folder with the frozen config, and the script in it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.config.changes import LENGTH, OF_THE_FOLDER, words_of_changes
from cifar_dist.config.settings import settings_of
from cifar_dist.config.tree import to_toml
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError, quoted
from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.folders import discard, free_name
from cifar_dist.run_folder import RunFolder, find_run
from cifar_dist.run_folder.kept_plugins import keep_versions
from cifar_dist.run_folder.opening import open_folder
from cifar_dist.run_folder.settings import read_settings, refuse_other_settings
from cifar_dist.runs.resume import is_submitted, resumed_config
from cifar_dist.slurm import sbatch
from cifar_dist.slurm.options import RESUME, Options

TEMPLATE: Final = "train.sbatch"

_LAST_OWN: Final = "--chdir="  # of a job script; the options that follow it were typed


@dataclass(frozen=True)
class Submission:
    """A run that is going to be a job.

    Attributes:
        config: the run, as it is or will be in its folder.
        settings: changes that the job makes to it, as a resume does.
        options: of Slurm.
        is_new: whether its folder did not exist when it was described.
    """

    config: Config
    settings: list[str]
    options: Options
    is_new: bool = False

    @classmethod
    def of_recipe(cls, name: str, settings: Sequence[str], options: Options) -> Submission:
        """Describe a new run of a recipe, with a free name unless one is given; or the run that has that name.

        Raises:
            UserError: the recipe or a setting is invalid, or a run of that name has other settings.
        """
        config = recipe.load_named(name, settings, _free_run_name)
        folder = RunFolder.of(config)
        if not folder.exists():
            return cls(config, [], options, is_new=not folder.path.exists())
        if config.run.fresh:
            raise UserError(f"{folder.path} exists and run.fresh is set; use another --run.name")
        refuse_other_settings(folder, config, besides=LENGTH)
        return cls(config, _changes(folder, config), options)

    @classmethod
    def of_run(cls, run: str, settings: Sequence[str], options: Options) -> Submission:
        """Describe a job that continues a run; without options, with those of its last job.

        Raises:
            UserError: it does not exist, or a setting is refused.
        """
        folder = find_run(run)
        config = resumed_config(folder, settings)
        return cls(config, list(settings), options if options.typed else _last_options(folder))

    @property
    def folder(self) -> RunFolder:
        return RunFolder.of(self.config)

    @property
    def log(self) -> str:
        """Name of the job's output, with Slurm's ``%j`` for its number, or ``%A`` and ``%a`` for a task of an array."""
        return "slurm-%A_%a.out" if self.options.array else "slurm-%j.out"

    def script(self) -> str:
        """Render the batch script: Slurm's options, the site's variables, and the run to continue."""
        path, script = quoted(self.folder.path), self.folder.job_script.name
        own = r"(?!--job-name|--output)"
        directives = [
            *re.findall(rf"^#SBATCH {own}.*$", sbatch.script_path(TEMPLATE).read_text(encoding="utf-8"), re.M),
            f"#SBATCH --output={self.log}",
        ]
        directives += [f"#SBATCH {option}" for option in self._own_options()]
        for words in (path, *directives):
            if "\n" in words:
                raise UserError(f"{words} has a line break, which {self.folder.job_script} cannot hold; remove it")
        variables = sbatch.site_variables(self.options).items()
        exports = [f"export {name}={shlex.quote(value)}" for name, value in variables]
        words = " ".join([RESUME, path, *map(shlex.quote, self.settings)])
        return "\n".join(
            [
                "#!/usr/bin/env bash",
                f"# The job of {path}. Submitted again, it continues the run: sbatch {path}/{script}",
                *directives,
                *exports,
                f'exec bash "$CIFAR_DIST_HOME/slurm/train.sbatch" {words}',
                "",
            ]
        )

    def _own_options(self) -> list[str]:
        return [
            f"--job-name={shlex.quote(self.config.run.name)}",
            f"{_LAST_OWN}{quoted(Path.cwd())}",  # paths in the config are relative to it
            *self.options.sbatch,
        ]

    def submit(self) -> sbatch.SubmittedJob:
        """Create the folder of the run unless it exists, write the script into it, and submit it.

        The job begins the run with the plug-ins as they are now.

        Raises:
            UserError: the folder cannot be used, another command has created it meanwhile, or Slurm accepts no job. A
                new folder is removed again.
        """
        folder = self.folder
        if self.is_new:
            self._claim_folder()
        try:
            if not folder.exists():
                self._create_folder()
            elif is_submitted(folder):  # again, perhaps because of an error in a plug-in
                keep_versions(folder.plugins, self.config)
            write_atomic(folder.job_script, self.script())
            # Slurm's variables, such as SBATCH_PARTITION, overrule the script, so the options are here, too.
            return sbatch.submit(folder.job_script, [], self.options)
        except UserError:
            if self.is_new:
                discard(folder.path)
            raise

    def frozen_config(self) -> str:
        """Return the config as it is or will be in the run folder."""
        folder, config = self.folder, self.config
        if folder.exists():
            return folder.config.read_text(encoding="utf-8")
        return to_toml(config.with_run(fresh=False))

    def _claim_folder(self) -> None:
        """Create the folder, so that no other command takes it for free.

        Raises:
            UserError: one has.
        """
        path = self.folder.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError:
            raise UserError(f"another command has created {path} meanwhile; run this one again") from None
        except OSError:
            pass  # it is reported as one of a run is

    def _create_folder(self) -> None:
        """Make the folder that of a run, as the run itself would, and leave it unlocked."""
        folder, config = self.folder, self.config
        unfresh = config.with_run(fresh=False)  # this command has created the folder
        open_folder(folder, unfresh if self.is_new else config, Manifest.load(config.data.path))
        write_atomic(folder.config, to_toml(unfresh))


def _last_options(folder: RunFolder) -> Options:
    """Return the options that were typed when a run was submitted last; none for one that was not.

    The jobs that it depended on are of the past.
    """
    if not folder.job_script.is_file():
        return Options([], [])
    script = folder.job_script.read_text(encoding="utf-8")
    _, _, typed = script.partition(f"\n#SBATCH {_LAST_OWN}")
    lines = re.findall(r"^#SBATCH (.*)$", typed, re.M)
    exports = re.findall(rf"^export {sbatch.SRUN_OPTIONS}=(.*)$", typed, re.M)
    of_site = os.environ.get(sbatch.SRUN_OPTIONS, "").split()  # added to each script
    of_srun = [word for export in exports for words in shlex.split(export) for word in words.split()]
    words = [word for line in lines for word in shlex.split(line, comments=True)]
    words += [word for word in of_srun if word not in of_site]
    return Options.parse(words).without("-d", "--dependency")


def _free_run_name(config: Config) -> str:
    folder = RunFolder.of(config)
    return folder.name if folder.has_range_test_only() else free_name(folder.path).name


def _changes(folder: RunFolder, config: Config) -> list[str]:
    """Return the words with which a resume gives the run the settings of ``config``, all of which it may change."""
    asked = settings_of(config)
    # A setting that `asked` lacks goes with the one that brought it, such as tracking.project with tracking.wandb.
    saved = {key: value for key, value in settings_of(read_settings(folder)).items() if key in asked}
    words = words_of_changes(saved, asked, [key for key in asked if key not in OF_THE_FOLDER])
    assert words is not None  # no setting is lacking
    return words
