"""When a run must stop to have saved before its limit on wall time: ``run.max_time``."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime

import psutil

from cifar_dist.config.run import seconds_of
from cifar_dist.distributed.stop_signals import GRACE_SECONDS
from cifar_dist.errors import UserError

_GRACE_FRACTION = 0.05  # of a limit, at most GRACE_SECONDS
_SCONTROL_SECONDS = 30


def deadline(max_time: str) -> float | None:
    """Return the time to stop at, in seconds since 1970; None without a limit.

    A limit counts from the start of this process. The run stops early enough to save: by 5 % of the limit, at most
    :data:`GRACE_SECONDS`. Before the end of a Slurm job it is always :data:`GRACE_SECONDS`.

    Args:
        max_time: see ``run.max_time``.

    Raises:
        UserError: ``auto`` outside a Slurm job, or Slurm does not know when the job ends.
    """
    if not max_time:
        return None
    if max_time == "auto":
        end = job_end(os.environ)
        return None if end is None else end - GRACE_SECONDS
    began: float = psutil.Process().create_time()
    return began + seconds_of(max_time) - grace_of_limit(max_time)


def grace_of_limit(max_time: str) -> float:
    """Return how many seconds before a limit on wall time a run stops."""
    return min(GRACE_SECONDS, _GRACE_FRACTION * seconds_of(max_time))


def job_end(variables: Mapping[str, str]) -> float | None:
    """Return the time at which Slurm ends this job, in seconds since 1970; None if the job has no limit.

    Raises:
        UserError: this is no Slurm job, or Slurm does not answer.
    """
    job = variables.get("SLURM_JOB_ID")
    if job is None:
        raise UserError("run.max_time auto: this is not a Slurm job; give a time, such as --run.max_time 2h")
    if variables.get("SLURM_JOB_END_TIME", "").isdecimal():  # since Slurm 22.05
        return float(variables["SLURM_JOB_END_TIME"])
    try:
        asked = ["scontrol", "show", "job", "--oneliner", job]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=_SCONTROL_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"run.max_time auto: scontrol does not say when job {job} ends ({error}); "
            "give a time, such as --run.max_time 2h"
        ) from None
    found = re.search(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", said)
    return datetime.fromisoformat(found[1]).timestamp() if found else None  # Unknown: no limit
