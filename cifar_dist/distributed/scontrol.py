"""Questions to Slurm about the job that this process is in."""

from __future__ import annotations

import os
import subprocess

from cifar_dist.errors import UserError

_SECONDS = 30  # in which Slurm must answer


def scontrol(*words: str) -> str:
    """Return what ``scontrol WORDS`` prints.

    Raises:
        UserError: it does not exist, fails, or does not answer.
    """
    env = {**os.environ, "SLURM_TIME_FORMAT": "standard"}  # a user may prefer "relative", or a format of strftime()
    try:
        return subprocess.run(
            ("scontrol", *words), env=env, capture_output=True, text=True, timeout=_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"Slurm does not answer: {error}") from None
