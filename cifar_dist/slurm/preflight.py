"""What a job finds out before its nodes start training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder


def check_job(words: Sequence[str], variables: Mapping[str, str]) -> RunFolder:
    """Refuse a job that cannot train; returns the folder of the run that it trains.

    Args:
        words: a recipe and its settings.
        variables: the environment of the job.

    Raises:
        UserError: a wrong recipe, setting, dataset or ``CIFAR_DIST_VENV``.
    """
    if (venv := variables.get("CIFAR_DIST_VENV")) and not (Path(venv) / "bin" / "python").exists():
        raise UserError(f"CIFAR_DIST_VENV is {venv}, and there is no {venv}/bin/python")
    if not words:
        raise UserError(f"which recipe? {', '.join(recipe.shipped())}, or the path of a .toml")
    config = config_in_job(words[0], words[1:], variables["SLURM_JOB_ID"])
    Manifest.load(config.data.path)
    return RunFolder(Path(config.run.dir) / config.run.name)


def config_in_job(name: str, settings: Sequence[str], job: str) -> Config:
    """The config of the run that a job trains: it is named ``RECIPE-JOBID`` unless it has a name of its own.

    The id of a job stays the same when it is requeued, so the next attempt finds the checkpoints of this one, and no
    other job does.

    Raises:
        UserError: a wrong recipe or setting.
    """
    config = recipe.load(name, settings)
    default = recipe.recipe_path(name).stem
    if config.run.name != default or "run.name" in recipe.parse_overrides(settings):
        return config
    return recipe.load(name, [*settings, "--run.name", f"{default}-{job}"])
