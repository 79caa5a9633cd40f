"""Submit the scripts of ``slurm/`` to a Slurm cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cifar_dist.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "slurm"

_SITE = (
    *("CIFAR_DIST_HOME", "CIFAR_DIST_VENV", "CIFAR_DIST_SETUP", "CIFAR_DIST_LAUNCH", "CIFAR_DIST_PROCESSES_PER_NODE"),
    *("CIFAR_DIST_SRUN_OPTIONS", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"),
)


def check_sbatch(otherwise: str) -> None:
    """Refuse a submission where Slurm is not installed.

    Raises:
        UserError: with the command ``otherwise``.
    """
    if not shutil.which("sbatch"):
        raise UserError(f"sbatch is not installed here; log in to the cluster, or use: {otherwise}")


def site_variables() -> dict[str, str]:
    """Return the variables that a job needs to find this repository and this Python, and those of the site."""
    own = {name: value for name, value in os.environ.items() if name in _SITE and value}
    return {"CIFAR_DIST_HOME": str(ROOT), "CIFAR_DIST_VENV": sys.prefix, **own}


def submit(script: Path, words: Sequence[str], options: Sequence[str]) -> str:
    """Submit a script; return the job's id.

    Args:
        script: for ``sbatch``.
        words: its arguments.
        options: of ``sbatch``.

    Raises:
        UserError: the script does not exist, or Slurm refuses the job.
    """
    if not script.is_file():
        raise UserError(f"{script} does not exist; submit from a checkout of the repository")
    env = {**os.environ, **site_variables()}
    command = ["sbatch", "--parsable", *options, str(script), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(done.stderr.split()) or 'sbatch failed'}; see: sbatch --help")
    return done.stdout.strip().partition(";")[0]
