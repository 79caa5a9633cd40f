"""The run that a launched job trains, as the words on its command line say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

from cifar_dist import recipe
from cifar_dist.config import Config, RunConfig
from cifar_dist.config.changes import LENGTH
from cifar_dist.config.overrides import split_settings
from cifar_dist.config.plugin_code import is_package
from cifar_dist.config.plugin_copies import kept_versions
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.files.code_version import versions
from cifar_dist.launch.options import LaunchRequest
from cifar_dist.launch.typed_command import command_with_cpu
from cifar_dist.run_folder import RunFolder, find_run
from cifar_dist.run_folder.opening import refuse_other_data
from cifar_dist.run_folder.settings import refuse_other_settings
from cifar_dist.runs.resume import resumed_config, settings_of_resume
from cifar_dist.tracking import timeline
from cifar_dist.tracking.environment import read_numerics

_ENGINES: Final = {"DEEPSPEED": "DeepSpeed", "FSDP": "FSDP"}  # how their descriptions begin; all others are like DDP


class LaunchedRun:
    """What a launcher of several machines asks of the run that its words start; see :class:`cifar_dist.launch.job.Job`.

    Its recipe is read once, when it is asked first.

    Args:
        words: a collective verb and its arguments.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    @property
    def join_timeout(self) -> float:
        """``run.join_timeout``; its default where no run is trained.

        Raises:
            UserError: the recipe, the run or a setting is invalid.
        """
        return (self._config.run if self._config else RunConfig()).join_timeout

    def is_finished(self) -> bool:
        """Whether the run is finished, with the length that the words ask for; False where none is trained."""
        from cifar_dist.training.continuation import is_finished

        config = self._config  # with run.fresh, this job has created the folder
        return config is not None and is_finished(config.with_run(fresh=False))

    def is_training(self) -> bool:
        """Whether a process trains the run now."""
        return self._config is not None and RunFolder.of(self._config).in_use()

    def starts(self) -> int | None:
        """Return how often processes have begun to train the run; None if it is finished, or none is trained."""
        if self._config is None or self.is_finished():
            return None
        return len(timeline.starts(timeline.read(RunFolder.of(self._config).timeline)))

    def check_elastic(self, asked: LaunchRequest, processes: Sequence[int], *, has_begun: bool = False) -> None:
        """Refuse a job, or this machine of it, that would end all machines once it has joined them.

        What the ranks refuse ends them all, with a job that trained without this machine until then. Before the job
        trains, they refuse what only this machine lacks.

        Args:
            asked: the processes of this machine.
            processes: all numbers of processes that the job may have; empty if they are unknown.
            has_begun: whether ranks of the job have trained before, also if no process trains the run now.

        Raises:
            UserError: it cannot train with one of them; or the job trains the run already, and this machine lacks its
                data, or has other settings, another engine, or no GPUs where that one has some.
        """
        if self._config is None or self.is_finished():
            return
        from cifar_dist.training.requirements import check_batch_size  # imports torch, which takes seconds

        config, folder = self._config, RunFolder.of(self._config)
        if folder.exists() and (has_begun or folder.in_use()):
            config = resumed_config(folder, split_settings(self.words_to_continue()[2:])[0])
            _refuse_other_settings_than_now(folder, config)
            _refuse_other_launch_than_now(folder, config, asked)
            refuse_other_data(folder, Manifest.load(config.data.path))
        expected = config.run.processes
        if expected and (other := next((count for count in processes if count != expected), 0)):
            raise UserError(
                f"run.processes is {expected} and this job may have {other}; use --run.processes 0, "
                "which allows any number"
            )
        for count in processes:
            check_batch_size(config, count)

    def words_to_continue(self) -> list[str]:
        """Return the words with which ranks that start again continue the run.

        They do not read its recipe again, which may have been edited for another run.
        """
        if self._config is None or not RunFolder.of(self._config).exists():
            return self.words
        settings, _ = split_settings(self.words[1:])
        return ["resume", str(RunFolder.of(self._config).path), *settings_of_resume(settings)]

    @cached_property
    def _config(self) -> Config | None:
        """The config; None for a verb that trains none, and for words that the verb will refuse or answer with help."""
        verb, *rest = self.words
        settings, others = split_settings(rest)
        if verb not in ("train", "resume") or len(others) != 1 or others[0].startswith("-"):
            return None
        return recipe.load(others[0], settings) if verb == "train" else resumed_config(find_run(others[0]), settings)


def _refuse_other_settings_than_now(folder: RunFolder, config: Config) -> None:
    """Refuse settings and versions that differ from those of the job that trains a run now, which are in its folder.

    Plug-in files need no check: ranks that start again in a job use the copies in the folder. Packages have none.

    Raises:
        UserError: the first of them.
    """
    from cifar_dist.distributed.same_settings import (
        CHECKSUM,
        PACKAGES_IN_COMMON,
        first_difference,
        plugin_checksums,
        settings_in_common,
        way_to_agree,
    )

    refuse_other_settings(folder, config, besides=LENGTH)  # it says more
    recorded = read_numerics(folder.environment)
    of_job: dict[str, object] = {package: recorded[package] for package in PACKAGES_IN_COMMON if package in recorded}
    kept = {f"{CHECKSUM}{one.file}": one.sha256[:12] for one in kept_versions(folder.plugins) if is_package(one.file)}
    packages = {key: checksum for key, checksum in plugin_checksums(config).items() if key in kept}
    own = versions(of_job) | packages | settings_in_common(config)
    of_job |= {key: kept[key] for key in packages}
    if found := first_difference(of_job | settings_in_common(resumed_config(folder, [])), own):
        key, now, here = found
        raise UserError(
            f"{key} is {now} in the job that trains {folder.path} now, and {here} here; {way_to_agree(key)}"
        )


def _refuse_other_launch_than_now(folder: RunFolder, config: Config, asked: LaunchRequest) -> None:
    """Refuse another engine than that of the job that trains a run now, or the CPU where that one has GPUs.

    Raises:
        UserError: with what that job has.
    """
    from torch import cuda

    starts = timeline.starts(timeline.read(folder.timeline))
    where = starts[-1].where if starts else ""
    if not where:
        return
    job = f"the job that trains {folder.path} now"
    engine = _ENGINES.get(asked.kind, "DDP")
    now = next((name for name in _ENGINES.values() if where.startswith(name)), "DDP")
    if config.train.engine == "auto" and engine != now:
        raise UserError(f"{job} has {now}, and {asked.config} asks for {engine}; give all machines the same command")
    has_gpus = not asked.use_cpu and cuda.is_available()
    if has_gpus and where.endswith(", cpu"):
        raise UserError(f"{job} computes on CPUs, and this machine would on GPUs; {command_with_cpu()}")
    if not has_gpus and ", cuda" in where:
        raise UserError(
            f"{job} computes on GPUs, and this machine would on its CPU; make its GPUs usable, see: cifar-dist doctor"
        )
