"""Where a job that recomputes steps differs from the jobs that trained them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cifar_dist.distributed.engine import Engine
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking.environment import describe_numerics
from cifar_dist.tracking.jobs import jobs_of_steps
from cifar_dist.tracking.timeline import Event

_OF_SETTINGS = ("threads", "train.compile")  # differences that no other launch of a replay avoids
_RECORDED_LATER = ("precision", *_OF_SETTINGS)  # what the timeline of an older version may lack


@dataclass(frozen=True)
class JobDifferences:
    """Where a job differs from the run's, which may change the last bits of a loss.

    Attributes:
        lines: for the reader; empty where nothing is known to differ.
        avoidable: whether a job on the run's processes would have fewer.
    """

    lines: tuple[str, ...]
    avoidable: bool


def differences(folder: RunFolder, engine: Engine, first: int, last: int) -> JobDifferences:
    """Describe where this job differs from the run's.

    Args:
        folder: the run.
        engine: this process in this job.
        first, last: the steps done before and after what is recomputed.
    """
    jobs = jobs_of_steps(folder, first, last)
    if not jobs:
        unknown = f"{folder.timeline} has lost on what steps {first + 1} to {last} were trained"
        return JobDifferences((unknown,), avoidable=False)
    numerics = _numerics_lines(engine, jobs)
    if not engine.rounds_by_processes:  # as if all had been trained on as many as these
        jobs = [replace(job, processes=engine.ranks.world_size) for job in jobs]
    if len(kinds := _kinds(jobs)) > 1:
        several = " and then ".join(kinds)
        line = f"steps {first + 1} to {last} were trained on {several}, and no job recomputes all to the last digit"
        return JobDifferences((line, *numerics), avoidable=False)
    then = {"processes": str(jobs[-1].processes), "wrapper": jobs[-1].wrapper, "device": jobs[-1].device}
    then |= {key: max(_recorded_later(job)[key] for job in jobs) for key in _RECORDED_LATER}
    now = {
        "processes": str(engine.ranks.world_size),
        "wrapper": engine.description,
        "device": engine.device_name,
        "precision": engine.arithmetic,
        "threads": str(engine.cpu_threads or ""),
        "train.compile": engine.compile_mode,
    }
    different = [key for key in now if then[key] and now[key] and then[key] != now[key]]
    lines = [f"{key}: {then[key]} then, {now[key]} now" for key in different]
    is_other_gpu = then["device"].startswith("cuda") and engine.device_name.startswith("cuda")
    avoidable = any(key not in _OF_SETTINGS and (key != "device" or not is_other_gpu) for key in different)
    return JobDifferences((*lines, *numerics), avoidable)


def _kinds(jobs: list[Event]) -> list[str]:
    """Describe the jobs by what differs among them, as far as it is known: in one text if nothing does."""
    varied = [key for key in _RECORDED_LATER if len({_recorded_later(job)[key] for job in jobs} - {""}) > 1]
    kinds = []
    for job in jobs:
        settings = [f"{key}: {_recorded_later(job)[key] or 'unknown'}" for key in varied]
        kinds.append(", ".join([f"{job.processes} x {job.where}", *settings]))
    return list(dict.fromkeys(kinds))


def _recorded_later(job: Event) -> dict[str, str]:
    """Return what :data:`_RECORDED_LATER` names, each empty if it is unknown."""
    return {"precision": job.precision, "threads": str(job.threads or ""), "train.compile": job.compile}


def _numerics_lines(engine: Engine, jobs: list[Event]) -> list[str]:
    """Say which versions, commits and CPUs of the jobs differ from those here, as far as the run has recorded them."""
    lines = []
    for key, now in describe_numerics(engine.device_name).items():
        before = dict.fromkeys(one[key] for one in (job.numerics for job in jobs) if key in one)
        if set(before) - {now}:
            lines.append(f"{key}: {' and '.join(before)} then, {now} now")
    return lines
