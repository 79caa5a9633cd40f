"""When a run must stop to have saved before its limit on wall time: ``run.max_time``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import psutil

from cifar_dist.config.run import seconds_of
from cifar_dist.distributed.scontrol import scontrol
from cifar_dist.distributed.stop_signals import GRACE_SECONDS
from cifar_dist.errors import UserError

_ENVIRONMENT = ("SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME")  # newer than Slurm 22.05
_TIME = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)"
_GRACE_FRACTION = 0.05  # of a limit, at most GRACE_SECONDS


@dataclass(frozen=True)
class JobTime:
    """When Slurm started this attempt of a job and when it ends it, in seconds since 1970."""

    start: float
    end: float

    def refuse_if_short(self, lead: float, stopper: str) -> None:
        """Refuse a job whose run would stop at its start, be requeued, and stop again.

        Args:
            lead: seconds before the end at which it stops.
            stopper: what stops it, for the reader.

        Raises:
            UserError: the job is not longer than that.
        """
        if (limit := self.end - self.start) <= lead:
            raise UserError(
                f"the job's time limit of {limit:.0f} s leaves no time to train: {stopper} stops the run {lead:.0f} s "
                "before it; ask for more, such as sbatch --time=10"
            )


def deadline(max_time: str) -> float | None:
    """Return the time to stop at, in seconds since 1970; None without a limit.

    A limit counts from the start of this process. The run stops early enough to save: by 5 % of the limit, at most
    :data:`GRACE_SECONDS`. Before the end of a Slurm job it is always :data:`GRACE_SECONDS`.

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
        UserError: this is no Slurm job, or Slurm does not answer.
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
