"""When a run must stop to have saved before its limit on wall time: ``run.max_time``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import psutil

from cifar_dist.config.run import seconds_of
from cifar_dist.distributed.scontrol import scontrol
from cifar_dist.errors import UserError
from cifar_dist.exit_codes import GRACE_SECONDS

_ENVIRONMENT = ("SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME")  # newer than Slurm 22.05
_TIME = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)"
_MINUTE = 60
_LEAST_MINUTES = 10  # of a job that is worth its start
_GRACE_FRACTION = 0.05  # of a limit, at most GRACE_SECONDS


@dataclass(frozen=True)
class JobTime:
    """When Slurm started this attempt of a job and when it ends it, in seconds since 1970."""

    start: float
    end: float

    def refuse_if_short(self, lead: float, stopper: str) -> None:
        """Refuse a job that :func:`refuse_short_limit` refuses.

        Raises:
            UserError: the job is too short.
        """
        refuse_short_limit(self.end - self.start, lead, stopper, "the job's time limit")


def refuse_short_limit(limit: float, lead: float, stopper: str, source: str) -> None:
    """Refuse a time limit with which a run would stop at its start, be requeued, and stop again.

    Slurm may send a signal up to a minute early (``man sbatch``); one that comes before the ranks listen is lost.

    Args:
        limit: seconds.
        lead: seconds before it at which the run stops.
        stopper: what stops the run, for the reader.
        source: what sets the limit, for the reader.

    Raises:
        UserError: less than a minute is left.
    """
    if limit - lead < _MINUTE:
        enough = max(_LEAST_MINUTES, math.ceil(2 * lead / _MINUTE))
        raise UserError(
            f"{source} ({limit:.0f} s) leaves less than a minute to train: {stopper} stops the run {lead:.0f} s "
            f"before it; ask for more, such as --time={enough}"
        )


def deadline(max_time: str) -> float | None:
    """Return the time to stop at, in seconds since 1970; None without a limit.

    A limit counts from the start of this process. The run stops early enough to save: by :data:`GRACE_SECONDS`, or 5 %
    of a limit of its own if that is less.

    Args:
        max_time: see ``run.max_time``.

    Raises:
        UserError: ``auto`` outside a Slurm job, in one that is too short, or Slurm does not know when the job ends.
    """
    if not max_time:
        return None
    if max_time == "auto":
        job = job_time(os.environ)
        if job is None:
            return None
        job.refuse_if_short(GRACE_SECONDS, "run.max_time auto")
        return job.end - GRACE_SECONDS
    began: float = psutil.Process().create_time()
    return began + seconds_of(max_time) - grace_of_limit(max_time)


def grace_of_limit(max_time: str) -> float:
    """Return how many seconds before a limit on wall time a run stops."""
    return min(GRACE_SECONDS, _GRACE_FRACTION * seconds_of(max_time))


def job_time(variables: Mapping[str, str]) -> JobTime | None:
    """Return when Slurm started this job and when it ends it; None if the job has no limit.

    Raises:
        UserError: this is not a Slurm job, or Slurm does not answer.
    """
    job = variables.get("SLURM_JOB_ID")
    if job is None:
        raise UserError("run.max_time auto: this is not a Slurm job; give a time, such as --run.max_time 2h")
    start, end = (variables.get(name, "") for name in _ENVIRONMENT)
    if start.isdecimal() and end.isdecimal():
        return JobTime(float(start), float(end))
    try:
        said = scontrol("show", "job", "--oneliner", job)
    except UserError as error:
        raise UserError(
            f"run.max_time auto: scontrol does not say when job {job} ends; give a time, such as --run.max_time 2h "
            f"({error})"
        ) from None
    # The last task of an array has the array's number, for which scontrol shows all of its tasks.
    found = re.search(rf"^JobId={job} .*\bStartTime={_TIME}.*\bEndTime={_TIME}", said, re.M)
    return JobTime(*(datetime.fromisoformat(text).timestamp() for text in found.groups())) if found else None
