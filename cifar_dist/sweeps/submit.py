"""A sweep as one Slurm job array: a task for each run that is not finished, started by ``slurm/sweep.sbatch``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.sweeps.sweep import Sweep

ROOT = Path(__file__).parents[2]


def submit(sweep: Sweep, options: Sequence[str], jobs: int | None = None) -> str:
    """Submit what is not finished; returns one line for the reader.

    The job carries the words of every run with it, so the file may be changed while it waits in the queue.

    Args:
        sweep: what to train.
        options: of ``sbatch``.
        jobs: how many tasks may run at a time; None: as many as there is room for.

    Raises:
        UserError: there is no Slurm here, or it refuses the job.
    """
    waiting = [run for run in sweep.runs if not run.folder.finished()]
    if not waiting:
        return f"{sweep.name}: all {len(sweep.runs)} runs are finished"
    script = ROOT / "slurm" / "sweep.sbatch"
    if not script.is_file():
        raise UserError(f"there is no {script}; submit from a checkout of the repository")
    if not shutil.which("sbatch"):
        raise UserError("there is no sbatch here; log in to the cluster, or use: cifar-dist sweep run")
    lines = ["\t".join(run.words) for run in waiting]
    for run, line in zip(waiting, lines, strict=True):
        if line.count("\t") + 1 != len(run.words) or "\n" in line:
            raise UserError(
                f"{run.name}: a setting holds a tab or a line break, which slurm/sweep.sbatch cannot pass on"
            )
    array = f"--array=0-{len(waiting) - 1}{f'%{jobs}' if jobs else ''}"
    env = {**os.environ}
    env.setdefault("CIFAR_DIST_HOME", str(ROOT))
    if sys.prefix != sys.base_prefix:
        env.setdefault("CIFAR_DIST_VENV", sys.prefix)
    done = subprocess.run(
        ["sbatch", "--parsable", array, f"--job-name={sweep.name}", *options, str(script), *lines],
        env=env,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"{' '.join(done.stderr.split()) or 'sbatch failed'}; see: sbatch --help")
    return f"{sweep.name}: job {done.stdout.strip().partition(';')[0]}, {len(waiting)} of {len(sweep.runs)} runs"


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings and options of sbatch apart: the name of a setting has a dot."""
    settings: list[str] = []
    options: list[str] = []
    kind = options
    for word in words:
        if word.startswith("-") and not word[1:2].isdigit():  # else it is a value
            kind = settings if word.startswith("--") and "." in word.partition("=")[0] else options
        kind.append(word)
    return settings, options
