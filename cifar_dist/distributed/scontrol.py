"""Questions to Slurm about the job that this process is in."""

from __future__ import annotations

import subprocess

from cifar_dist.errors import UserError

_SECONDS = 30  # in which Slurm must answer


def scontrol(*words: str) -> str:
    """Return what ``scontrol WORDS`` prints.

    Raises:
        UserError: it does not exist, fails, or does not answer.
    """
    try:
        return subprocess.run(("scontrol", *words), capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"Slurm does not answer: {error}") from None
