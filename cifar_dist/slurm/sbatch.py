"""Submit the scripts of ``slurm/`` to a Slurm cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.files.checkout import HOME, repository
from cifar_dist.launch.typed_command import SLURM_CONFIG, SLURM_PROCESSES
from cifar_dist.slurm.node import MIN_NODES
from cifar_dist.slurm.options import PYXIS, Options, asked
from cifar_dist.terminal.notice import notice

_VENV = "CIFAR_DIST_VENV"
SRUN_OPTIONS = "CIFAR_DIST_SRUN_OPTIONS"
_SITE = (
    *(HOME, _VENV, "CIFAR_DIST_SETUP", SLURM_CONFIG, SLURM_PROCESSES, MIN_NODES),
    *(SRUN_OPTIONS, "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"),
)


def script_path(name: str) -> Path:
    """Return a script of ``slurm/``."""
    return repository() / "slurm" / name


def check_sbatch(otherwise: str) -> None:
    """Refuse a submission where Slurm is not installed.

    Raises:
        UserError: with the command ``otherwise``.
    """
    if not shutil.which("sbatch"):
        raise UserError(f"sbatch is not installed here; log in to the cluster, or use: {otherwise}")


def site_variables(options: Options) -> dict[str, str]:
    """Return the variables that a job needs to find this repository and this Python, and those of the site.

    A job with ``--export=NONE`` inherits none of them, so its script must contain them. ``CIFAR_DIST_VENV`` is left out
    where srun enters a container, which has a Python of its own.

    Args:
        options: of the job; those of ``srun`` are in a variable.

    Raises:
        UserError: that variable has a quote.
    """
    own = {name: value for name, value in os.environ.items() if name in _SITE and value}
    if options.srun:
        own[SRUN_OPTIONS] = " ".join([*filter(None, [own.get(SRUN_OPTIONS)]), *options.srun])
    of_srun = own.get(SRUN_OPTIONS, "")
    if set("'\"") & set(of_srun):
        problem = f"{SRUN_OPTIONS} is split at spaces, also inside quotes: {of_srun}"
        raise UserError(f"{problem}; use no quotes, and no space in a path")
    is_here = Path(sys.prefix, "bin", "python").exists() and PYXIS not in of_srun
    return {HOME: str(repository()), **({_VENV: sys.prefix} if is_here else {}), **own}


@dataclass(frozen=True)
class SubmittedJob:
    """A job that Slurm has accepted, whatever becomes of it.

    Attributes:
        id: Slurm's number.
        sbatch: the command, which ends with the job if ``--wait`` or ``SBATCH_WAIT`` asks for that, else at once.
    """

    id: str
    sbatch: subprocess.Popen[str]

    def wait(self) -> int:
        """Wait for ``sbatch``, pass on its warnings, and return its exit code, which with ``--wait`` is the job's."""
        try:
            _, said = self.sbatch.communicate()
        except KeyboardInterrupt:  # ends the wait, and not the job
            notice(f"job {self.id} continues; to cancel it: scancel {self.id}")
            raise
        print(said, end="", file=sys.stderr, flush=True)
        return self.sbatch.returncode


def submit(script: Path, words: Sequence[str], options: Options) -> SubmittedJob:
    """Submit a script; return as soon as Slurm has accepted the job.

    Args:
        script: for ``sbatch``.
        words: its arguments.
        options: of ``sbatch``.

    Raises:
        UserError: the script does not exist, or Slurm accepts no job.
    """
    env = {**os.environ, **site_variables(options)}
    if signal := asked(("--signal",), options, os.environ, Options.of_script(script))[1]:
        env["SBATCH_SIGNAL"] = signal  # tells the job, which cannot ask Slurm
    command = ["sbatch", "--parsable", *options.words, str(script), *words]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None  # it is a pipe
    job = process.stdout.readline().strip().partition(";")[0]
    if job.isdecimal():
        return SubmittedJob(job, process)
    said = "; ".join(filter(None, map(str.strip, process.communicate()[1].splitlines())))
    if process.returncode:
        raise UserError(said or f"sbatch failed with exit code {process.returncode}, and says no more")
    raise UserError(
        f"sbatch submitted no job{said and f' ({said})'}; remove the option that asks for none, such as --test-only"
    )
