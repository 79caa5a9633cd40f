"""Check a job before its nodes start training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from cifar_dist import recipe
from cifar_dist.config import Config, RunConfig
from cifar_dist.config.changes import contradiction
from cifar_dist.config.keys import all_keys
from cifar_dist.config.overrides import parse_overrides, split_settings
from cifar_dist.config.section import expand_existing
from cifar_dist.config.settings import settings_of
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.asked_engine import AskedEngine
from cifar_dist.distributed.time_limit import deadline, job_time
from cifar_dist.doctor.grace import signal_of_job
from cifar_dist.errors import UserError, quoted
from cifar_dist.launch.configs import find_config
from cifar_dist.launch.launched import attempt_number
from cifar_dist.launch.typed_command import SLURM_PROCESSES
from cifar_dist.run_folder import RunFolder, find_run
from cifar_dist.runs.resume import OF_A_NEW_RUN, resumed_config, settings_of_resume
from cifar_dist.slurm.job_output import folder_named_before, say
from cifar_dist.slurm.node import MIN_NODES, launch_config, positive
from cifar_dist.slurm.options import RESUME
from cifar_dist.tracking.environment import read_variables

_TRAIN = "train"


def check_job(words: Sequence[str], variables: Mapping[str, str]) -> tuple[Config, str]:
    """Refuse a job that cannot train; return the config of its run, and whether to ``train`` or to ``resume`` it.

    A later attempt resumes what the first one began: the recipe may have been edited since, for another job.

    Args:
        words: a recipe and its settings, or ``resume``, a run and its settings.
        variables: the environment of the job.

    Raises:
        UserError: the recipe, a setting, the dataset or a variable of the site is invalid, or the job too short.
    """
    if (venv := variables.get("CIFAR_DIST_VENV")) and not (Path(venv) / "bin" / "python").exists():
        raise UserError(
            f"CIFAR_DIST_VENV is {venv}, but {venv}/bin/python does not exist; set it to a virtual environment"
        )
    if not words:
        raise UserError("name a recipe: one that cifar-dist recipes lists, or the path of a .toml")
    _refuse_options(words)
    job = variables["SLURM_JOB_ID"]
    verb = RESUME
    if words[0] == RESUME:
        if len(words) == 1:
            raise UserError("name the run to resume: sbatch slurm/train.sbatch resume RUN")
        config = resumed_config(find_run(words[1]), words[2:])
    elif attempt_number(variables) > 1 and (begun := _config_begun(words, job)) is not None:
        config = begun
    else:
        verb, config = _TRAIN, config_in_job(words[0], words[1:], job, begins=True)
    Manifest.load(config.data.path)
    check_site(config, variables)
    _check_time(config, variables)
    return config, verb


def _refuse_options(words: Sequence[str]) -> None:
    """Refuse options of ``sbatch`` that follow its script, which gets them as arguments. A setting has a dot.

    Raises:
        UserError: with the first of them.
    """
    fields = {key.rpartition(".")[2] for key in all_keys()}  # without its section, it is better explained as a setting
    others = split_settings(words)[1]
    for index, word in enumerate(others):
        name = word.partition("=")[0].lstrip("-").replace("-", "_")
        if word.startswith("-") and name not in fields:
            value = list(itertools.takewhile(lambda other: not other.startswith("-"), others[index + 1 :]))
            if index == 0:
                value = value[: -2 if RESUME in value else -1]  # what the job trains follows
            option = " ".join(quoted(one) for one in (word, *value[:1]))
            raise UserError(
                f"{word} is not a setting (--section.field); an option of sbatch precedes its script: "
                f"sbatch {option} slurm/train.sbatch RECIPE"
            )


def _config_begun(words: Sequence[str], job: str) -> Config | None:
    """Return the config of the run that an earlier attempt of ``job`` began; None if that began none.

    Raises:
        UserError: the recipe cannot be read any more, nor the run's folder found without it; or a setting is invalid.
    """
    asked, named = None, folder_named_before(job)
    try:
        asked = config_in_job(words[0], words[1:], job)
        folder = named or RunFolder.of(asked)
    except UserError as error:
        folder = named or _expected_folder(words, job)
        if named is None and read_variables(folder.environment).get("SLURM_JOB_ID") != job:
            raise
        say(f"{error}; {folder.path} continues as it was started")
    if not folder.exists():
        return None
    config = resumed_config(folder, settings_of_resume(words[1:]))
    if asked and (now := RunFolder.of(asked).path) != folder.path:
        say(f"{words[0]} now trains {now}; {folder.path}, which this job began, continues as it was started")
    elif asked and (found := contradiction(settings_of(config), settings_of(asked), OF_A_NEW_RUN, f"{words[0]} now")):
        say(f"{folder.path} was started with {found[1]}; it continues as it was started")
    return config


def _expected_folder(words: Sequence[str], job: str) -> RunFolder:
    """Return the folder of a run whose recipe names neither it nor ``run.dir``."""
    given = parse_overrides(words[1:])
    name = given.get("run.name") or f"{recipe.run_name(Path(words[0]))}-{job}"
    return RunFolder(expand_existing(Path(given.get("run.dir") or RunConfig().dir, str(name))))


def check_site(config: Config, variables: Mapping[str, str]) -> None:
    """Refuse variables of a site that name no processes or launch config, or an engine that cannot train the run.

    Args:
        config: the run.
        variables: the environment, of the job or of the command that submits it.

    Raises:
        UserError: one of them is invalid, or the engine lacks a setting of the run.
    """
    for name in (SLURM_PROCESSES, MIN_NODES):
        positive(variables, name)
    path = find_config(launch_config(variables))
    from cifar_dist.distributed.start import check_engine  # imports torch, which takes seconds

    check_engine(config, AskedEngine.of_config(path))


def _check_time(config: Config, variables: Mapping[str, str]) -> None:
    """Refuse a job that Slurm or ``run.max_time`` stops at its start: it would be requeued again and again.

    What only its script asks for, which ``sbatch --signal`` overrules, is reported.
    """
    deadline(config.run.max_time)
    signal, lead = signal_of_job(variables)
    try:
        job = job_time(variables) if lead else None
    except UserError:  # a container without Slurm's commands
        return
    if job is None:
        return
    try:
        job.refuse_if_short(lead, signal)
    except UserError as error:
        if variables.get("SBATCH_SIGNAL"):
            raise
        say(f"unless sbatch was given another --signal, {error}")


def config_in_job(name: str, settings: Sequence[str], job: str, *, begins: bool = False) -> Config:
    """Return the config of the run that a job trains, named ``RECIPE-JOBID`` unless it has its own name.

    A requeued job keeps its id, so the next attempt, and no other job, finds the checkpoints of this one.

    Args:
        name: of the recipe.
        settings: that override it.
        job: Slurm's number.
        begins: whether the job begins the run.

    Raises:
        UserError: the recipe or a setting is invalid; or the job begins a run, and another one has its name.
    """

    def named_after_job(config: Config) -> str:
        run = f"{config.run.name}-{job}"
        if begins and (folder := RunFolder(Path(config.run.dir, run))).exists():
            path = quoted(folder.path)
            raise UserError(
                f"{path} exists, and this job begins a new run; give that another --run.name, "
                f"or continue this one: sbatch slurm/train.sbatch resume {path}"
            )
        return run

    return recipe.load_named(name, settings, named_after_job)
