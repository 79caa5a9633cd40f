"""On what the jobs of a run computed its steps, by its timeline: a job that ended before it saved computed none.

``environment.json`` is of the newest job in any case. It has what the timeline of an older version lacks.
"""

from __future__ import annotations

from dataclasses import replace

from cifar_dist.config import Config
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline
from cifar_dist.tracking.environment import read_facts, read_numerics
from cifar_dist.tracking.timeline import Event


def jobs_of_steps(folder: RunFolder, first: int, last: int) -> list[Event]:
    """Return the starts of the jobs that trained steps of a run as they are kept now, the oldest first.

    Empty if they are unknown.

    Args:
        folder: of the run.
        first, last: the steps done before and after these.
    """
    found: list[Event] = []
    end = last
    for job in reversed(_jobs(folder)):
        if max(job.step, first) < end:
            found.append(job)
        end = min(job.step, end)
    return found[::-1]


def job_of_step(folder: RunFolder, step: int) -> Event | None:
    """Return the job that trained a step of a run, as it is kept now: of a checkpoint, its last one.

    None if it is unknown, and for step 0.
    """
    return next(iter(jobs_of_steps(folder, step - 1, step)), None)


def recorded_threads(job: Event | None, config: Config, processes: int) -> int:
    """Return the CPU threads of each process of a job, with which another one rounds as it did.

    They are 0 if they are unknown, or if the other job rounds differently anyway.

    Args:
        job: of the steps done; None if it is unknown.
        config: of the run; with ``train.parts`` the number of processes changes nothing.
        processes: of the other job.
    """
    return job.threads if job and (config.train.parts or job.processes == processes) else 0


def _jobs(folder: RunFolder) -> list[Event]:
    """List the starts of a run's jobs, the oldest first; of a branch, the job of its origin is the first, from step 0.

    A run without a timeline has one job, that of its ``environment.json``.
    """
    events = timeline.read(folder.timeline)
    origins = [replace(event, step=0) for event in events if event.kind == "branched" and event.processes]
    *older, newest = timeline.starts(events) or [Event("", "started", 0)]
    return [*origins[-1:], *older, *_completed(newest, folder)]


def _completed(newest: Event, folder: RunFolder) -> list[Event]:
    """Return the newest start with what ``environment.json`` knows of it; nothing if neither knows its processes."""
    facts = read_facts(folder.environment)
    known = replace(
        newest,
        processes=newest.processes or facts.processes,
        where=newest.where or f"{facts.wrapper}, {facts.device}",
        numerics=newest.numerics or read_numerics(folder.environment),
        threads=newest.threads or facts.threads,
        precision=newest.precision or facts.precision,
    )
    return [known] if known.processes else []
