"""A run as a Slurm job: its folder with the frozen config, the script in it, and what the options ask for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.config.changes import LENGTH, words_of_changes
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.files import discard, free_name, write_atomic
from cifar_dist.run_folder import RunFolder, find_run
from cifar_dist.runs.resume import resumed_config
from cifar_dist.slurm import sbatch
from cifar_dist.slurm.preflight import RESUME

_PYXIS: Final = "--container-"  # srun enters the container; the batch script needs Slurm, which an image may lack
_PLACE: Final = ("run.name", "run.dir", "run.fresh")


@dataclass(frozen=True)
class Options:
    """The words that are meant for Slurm.

    Attributes:
        sbatch: options of ``sbatch``, one string for each with its value.
        srun: options of ``srun`` alone.
    """

    sbatch: list[str]
    srun: list[str]

    @classmethod
    def parse(cls, words: Sequence[str]) -> Options:
        """Group options with their values, and separate those of pyxis.

        Raises:
            UserError: a word is no option, or an array would run several jobs of one run at once.
        """
        grouped: list[list[str]] = []
        for word in words:
            if word.startswith("-"):
                grouped.append([word])
            elif not grouped or len(grouped[-1]) > 1 or "=" in grouped[-1][0]:
                raise UserError(f"unexpected '{word}'; sbatch options begin with -, settings are --section.field VALUE")
            else:
                grouped[-1].append(word)
        options = [" ".join(map(shlex.quote, group)) for group in grouped]
        for option in options:
            if re.match(r"(-a|--array)\b", option) and not option.rstrip("'").endswith("%1"):
                raise UserError(
                    f"{option} would run several jobs of one run at once; add %1 for a chain of jobs that continue it, "
                    "or train many runs: cifar-dist sweep submit FILE"
                )
        of_srun = [option for option in options if option.startswith(_PYXIS)]
        return cls([option for option in options if option not in of_srun], of_srun)

    @property
    def words(self) -> list[str]:
        return [word for option in self.sbatch for word in shlex.split(option)]

    def processes(self, variables: Mapping[str, str]) -> int | None:
        """Return the number of processes of the job; None where the options alone do not say it."""
        if self._value("-G", "--gpus", "--gpus-per-task", "--gpus-per-socket"):
            return None
        nodes = self._value("-N", "--nodes") or "1"
        gres = self._value("--gres") or variables.get("SBATCH_GRES", "")
        gpus = re.search(r"gpu(?::[a-zA-Z][^:,]*)?(?::(\d+))?(?:,|$)", gres)
        per_node = self._value("--gpus-per-node") or variables.get("SBATCH_GPUS_PER_NODE", "")
        on_node = variables.get("CIFAR_DIST_PROCESSES_PER_NODE") or per_node.rpartition(":")[2]
        on_node = on_node or ((gpus[1] or "1") if gpus else "1")
        if not (nodes.isdecimal() and on_node.isdecimal() and int(nodes)):  # sbatch refuses --nodes=0
            return None
        return int(nodes) * max(1, int(on_node))

    def _value(self, *names: str) -> str:
        for option in reversed(self.sbatch):
            name, _, value = option.replace("=", " ", 1).partition(" ")
            if name in names:
                return value
        return ""


@dataclass(frozen=True)
class Submission:
    """A run that is going to be a job.

    Attributes:
        config: the run, as it is or will be in its folder.
        settings: changes that the job makes to it, as a resume does.
        options: of Slurm.
    """

    config: Config
    settings: list[str]
    options: Options

    @classmethod
    def of_recipe(cls, name: str, settings: Sequence[str], options: Options) -> Submission:
        """Describe a new run of a recipe, with a free name unless one is given; or the run that has that name.

        Raises:
            UserError: the recipe or a setting is invalid, or a run of that name has other settings.
        """
        config = recipe.load(name, settings)
        own_name = "run.name" in recipe.parse_overrides(settings) or config.run.name != recipe.recipe_path(name).stem
        path = Path(config.run.dir) / config.run.name
        if not own_name:
            free = ["--run.name", free_name(path).name]
            return cls(recipe.load(name, [*settings, *free]), [], options)
        folder = RunFolder(path)
        if not folder.exists():
            return cls(config, [], options)
        if config.run.fresh:
            raise UserError(f"{path} exists and run.fresh is set; use another --run.name")
        folder.refuse_other_settings(config, besides=LENGTH)
        started = recipe.settings_of(recipe.read(folder.config))
        length = words_of_changes(started, recipe.settings_of(config), LENGTH) or []
        return cls(config, [*_without_place(settings), *shlex.split(" ".join(length))], options)

    @classmethod
    def of_run(cls, run: str, settings: Sequence[str], options: Options) -> Submission:
        """Describe a job that continues a run.

        Raises:
            UserError: it does not exist, or a setting is refused.
        """
        return cls(resumed_config(find_run(run), settings), list(settings), options)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.config.run.dir) / self.config.run.name)

    def script(self) -> str:
        """Render the batch script: Slurm's options, the site's variables, and the run to continue."""
        path = shlex.quote(str(self.folder.path))
        directives = re.findall(r"^#SBATCH .*(?<!job-name=cifar-dist)$", _template(), re.M)
        directives += [f"#SBATCH {option}" for option in self._own_options()]
        variables = sbatch.site_variables()
        if self.options.srun:
            given = [variables.get("CIFAR_DIST_SRUN_OPTIONS", ""), *self.options.srun]
            variables["CIFAR_DIST_SRUN_OPTIONS"] = " ".join(filter(None, given))
        exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        words = " ".join([RESUME, path, *map(shlex.quote, self.settings)])
        return "\n".join(
            [
                "#!/usr/bin/env bash",
                f"# The job of {path}. Submitted again, it continues the run: sbatch {path}/job.sbatch",
                *directives,
                *exports,
                f'exec bash "$CIFAR_DIST_HOME/slurm/train.sbatch" {words}',
                "",
            ]
        )

    def _own_options(self) -> list[str]:
        return [
            f"--job-name={shlex.quote(self.config.run.name)}",
            f"--chdir={shlex.quote(str(Path.cwd()))}",  # paths in the config are relative to it
            *self.options.sbatch,
        ]

    def submit(self) -> sbatch.SubmittedJob:
        """Create the folder of the run unless it exists, write the script into it, and submit it.

        Raises:
            UserError: the folder cannot be used, or Slurm accepts no job; then a new folder is removed again.
        """
        folder = self.folder
        is_new = not folder.path.exists()
        if not folder.exists():
            self._create_folder()
        try:
            write_atomic(folder.job_script, self.script())
            # Slurm's variables, such as SBATCH_PARTITION, overrule the script, so the options are here, too.
            return sbatch.submit(folder.job_script, [], self.options.words)
        except UserError:
            if is_new:
                discard(folder.path)
            raise

    def frozen_config(self) -> str:
        """Return the config as it is or will be in the run folder."""
        folder, config = self.folder, self.config
        if folder.exists():
            return folder.config.read_text(encoding="utf-8")
        return recipe.to_toml(replace(config, run=replace(config.run, fresh=False)))

    def _create_folder(self) -> None:
        """Create the folder as the run itself would, and leave it unlocked."""
        frozen = self.frozen_config()
        folder = self.folder
        folder.open(self.config, Manifest.load(self.config.data.path))
        write_atomic(folder.config, frozen)


def _template() -> str:
    return (sbatch.SCRIPTS / "train.sbatch").read_text(encoding="utf-8")


def _without_place(settings: Sequence[str]) -> list[str]:
    """Drop the settings that name the run, with their values."""
    kept: list[str] = []
    keeps = True
    for word in settings:
        if word.startswith("--"):
            keeps = word[2:].partition("=")[0] not in _PLACE
        kept += [word] if keeps else []
    return kept
