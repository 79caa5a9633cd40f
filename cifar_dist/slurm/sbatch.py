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


def submit(script: str, words: Sequence[str], options: Sequence[str], *, otherwise: str) -> str:
    """Submit a script of ``slurm/``; return the job's id.

    Args:
        script: its name in ``slurm/``.
        words: its arguments.
        options: of ``sbatch``.
        otherwise: the command to suggest if Slurm is not installed.

    Raises:
        UserError: Slurm is not installed, or it refuses the job.
    """
    path = ROOT / "slurm" / script
    if not path.is_file():
        raise UserError(f"{path} does not exist; submit from a checkout of the repository")
    if not shutil.which("sbatch"):
        raise UserError(f"sbatch is not installed here; log in to the cluster, or use: {otherwise}")
    env = {**os.environ}
    env.setdefault("CIFAR_DIST_HOME", str(ROOT))
    if sys.prefix != sys.base_prefix:
        env.setdefault("CIFAR_DIST_VENV", sys.prefix)
    done = subprocess.run(
        ["sbatch", "--parsable", *options, str(path), *words], env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"{' '.join(done.stderr.split()) or 'sbatch failed'}; see: sbatch --help")
    return done.stdout.strip().partition(";")[0]
