"""How long a job has to save after it was asked to stop."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cifar_dist.distributed.scontrol import scontrol
from cifar_dist.distributed.time_limit import grace_of_limit
from cifar_dist.errors import UserError
from cifar_dist.exit_codes import GRACE_SECONDS

_EARLIER = "ask for Slurm's signal earlier, before you submit: export SBATCH_SIGNAL=USR1@{seconds}"
_DEFAULT_LEAD = 60  # seconds before the end of the job, of a --signal that names none


@dataclass(frozen=True)
class Grace:
    """The shortest time between a request to stop and the end of the processes.

    Attributes:
        seconds: that time.
        source: who gives it, for a reader.
        remedy: how to get more, with ``{seconds}`` in it.
    """

    seconds: float
    source: str
    remedy: str


def find_grace(max_time: str, variables: Mapping[str, str]) -> Grace:
    """Return the grace of the Slurm job that this process is in; else that of ``run.max_time``, or of Slurm's scripts.

    Raises:
        UserError: Slurm does not answer.
    """
    if "SLURM_JOB_ID" in variables:
        return min(_graces_of_job(variables), key=lambda grace: grace.seconds)
    if max_time and max_time != "auto":
        seconds = grace_of_limit(max_time)
        return Grace(seconds, f"run.max_time {max_time}", "give the run a longer --run.max_time")
    return Grace(GRACE_SECONDS, "that slurm/train.sbatch asks for", _EARLIER)


def _graces_of_job(variables: Mapping[str, str]) -> list[Grace]:
    """The job's graces before its time limit, and when it is preempted."""
    kill_wait = int(_find(r"KillWait\s*=\s*(\d+)", scontrol("show", "config")) or 30)
    signal, lead = signal_of_job(variables)
    if lead:
        graces = [Grace(lead, signal, _EARLIER)]
    else:
        graces = [Grace(kill_wait, "KillWait, as the job has no --signal", _EARLIER)]
    partition = variables.get("SLURM_JOB_PARTITION", "")
    said = scontrol("show", "partition", partition) if partition else ""
    if {"REQUEUE", "CANCEL"} & {*_find(r"PreemptMode=(\S+)", said).split(",")}:  # such as GANG,REQUEUE
        seconds = int(_find(r"GraceTime=(\d+)", said) or 0) or kill_wait
        graces.append(
            Grace(
                seconds,
                f"when preempted in partition {partition}",
                "save more often, --checkpoint.every_steps, or use a partition without preemption",
            )
        )
    return graces


def signal_of_job(variables: Mapping[str, str]) -> tuple[str, int]:
    """Return who asks for a signal of this job, and how many seconds before its end Slurm sends it; 0 for none.

    Without ``SBATCH_SIGNAL`` it is the job's script, which options of ``sbatch`` overrule; Slurm does not show these.
    """
    if signal := variables.get("SBATCH_SIGNAL"):
        asked = f"SBATCH_SIGNAL={signal}"
    elif signal := _signal_of_script(variables["SLURM_JOB_ID"]):
        asked = f"--signal={signal}"
    else:
        return "", 0
    return asked, lead_of_signal(signal)


def lead_of_signal(signal: str) -> int:
    """Return how many seconds before the end of a job Slurm sends the signal that ``--signal`` asks for."""
    return int(_find(r"@(\d+)", signal) or _DEFAULT_LEAD)


def _signal_of_script(job: str) -> str:
    """Return the ``--signal`` in the job's script; empty if it has none, as an interactive job has no script."""
    try:
        script = scontrol("write", "batch_script", job, "-")
    except UserError:
        return ""
    return next(reversed(re.findall(r"^#SBATCH.*\s--signal[= ](\S+)", script, re.M)), "")


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""
