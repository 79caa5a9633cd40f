"""Where a job that recomputes steps differs from the jobs that trained them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from cifar_dist.distributed.engine import Engine
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline
from cifar_dist.tracking.environment import describe_numerics, read_facts, read_numerics
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.timeline import Event

_OF_SETTINGS = ("threads", "train.compile")  # differences that no other launch of a replay avoids


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
    facts = read_facts(folder.environment)
    if facts == RunFacts():
        unknown = "the run's environment.json is missing: its processes and device are not known"
        return JobDifferences((unknown,), avoidable=False)
    jobs = _jobs_of(folder, first, last)
    numerics = _numerics_lines(folder, engine, jobs)
    if not engine.rounds_by_processes:  # as if all had been trained on as many as these
        facts = replace(facts, processes=engine.ranks.world_size)
        jobs = [replace(job, processes=engine.ranks.world_size) for job in jobs]
    if len(kinds := _kinds(jobs)) > 1:
        several = " and then ".join(kinds)
        line = f"steps {first + 1} to {last} were trained on {several}, and no job recomputes all to the last digit"
        return JobDifferences((line, *numerics), avoidable=False)
    then = asdict(facts) | _settings(facts.threads, "")
    for job in jobs:
        then |= {"processes": job.processes, "wrapper": job.wrapper, "device": job.device}
    then |= {key: max(settings[key] for settings in map(_settings_of, jobs)) for key in _OF_SETTINGS if jobs}
    now = {
        "processes": engine.ranks.world_size,
        "wrapper": engine.description,
        "device": engine.device_name,
        "precision": engine.arithmetic,
        **_settings(engine.cpu_threads, engine.compile_mode),
    }
    different = [key for key in now if then[key] and now[key] and then[key] != now[key]]
    lines = [f"{key}: {then[key]} then, {now[key]} now" for key in different]
    is_other_gpu = then["device"].startswith("cuda") and engine.device_name.startswith("cuda")
    avoidable = any(key not in _OF_SETTINGS and (key != "device" or not is_other_gpu) for key in different)
    return JobDifferences((*lines, *numerics), avoidable)


def _kinds(jobs: list[Event]) -> list[str]:
    """Describe the jobs by what differs among them, as far as it is known: in one text if nothing does."""
    varied = [key for key in _OF_SETTINGS if len({_settings_of(job)[key] for job in jobs} - {""}) > 1]
    kinds = []
    for job in jobs:
        settings = [f"{key}: {_settings_of(job)[key] or 'unknown'}" for key in varied]
        kinds.append(", ".join([f"{job.processes} x {job.where}", *settings]))
    return list(dict.fromkeys(kinds))


def _settings_of(job: Event) -> dict[str, str]:
    return _settings(job.threads, job.compile)


def _settings(threads: int, compile_mode: str) -> dict[str, str]:
    """Return what :data:`_OF_SETTINGS` names, each empty if it is unknown."""
    return dict(zip(_OF_SETTINGS, (str(threads or ""), compile_mode), strict=True))


def _numerics_lines(folder: RunFolder, engine: Engine, jobs: list[Event]) -> list[str]:
    """Say which versions, commits and CPUs of the jobs differ from those here, as far as the run has recorded them."""
    then = [job.numerics for job in jobs] if _starts(folder) else [read_numerics(folder.environment)]
    lines = []
    for key, now in describe_numerics(engine.device_name).items():
        before = dict.fromkeys(one[key] for one in then if key in one)
        if set(before) - {now}:
            lines.append(f"{key}: {' and '.join(before)} then, {now} now")
    return lines


def _jobs_of(folder: RunFolder, first: int, last: int) -> list[Event]:
    """Return the starts of the jobs that trained the steps from ``first`` to ``last``."""
    events = _starts(folder)
    ends = [*(event.step for event in events[1:]), last]
    return [event for event, end in zip(events, ends, strict=False) if event.step < last and first < end]


def _starts(folder: RunFolder) -> list[Event]:
    """Return the starts of all jobs, the newest with what an older timeline lacks and ``environment.json`` has."""
    events = [event for event in timeline.read(folder.timeline) if event.processes]
    if events:
        newest, environment = events[-1], folder.environment
        threads = newest.threads or read_facts(environment).threads
        events[-1] = replace(newest, threads=threads, numerics=newest.numerics or read_numerics(environment))
    return events
