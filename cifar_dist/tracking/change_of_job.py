"""How a job that resumes a run computes otherwise than the job that computed the steps done."""

from __future__ import annotations

from cifar_dist.config import Config
from cifar_dist.formatting import counted
from cifar_dist.tracking.environment import describe_numerics
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.jobs import recorded_threads
from cifar_dist.tracking.timeline import Event


def change_of_numerics(before: Event | None, device: str, steps: int) -> str:
    """Say that a resumed run has another device, commit or version than the steps done; empty if it has not.

    Args:
        before: the job that computed them; None if it is unknown.
        device: of the run from here on.
        steps: done before.
    """
    if before is None:
        return ""
    then = {"device": before.device} | before.numerics
    now = {"device": device} | describe_numerics(device)
    changes = [f"{key} {then[key]} -> {now[key]}" for key in now if then.get(key) and then[key] != now[key]]
    return f"changed since the {counted(steps, 'step')} done: {', '.join(changes)}" if changes else ""


def rounding_notes(before: Event | None, config: Config, now: RunFacts, steps: int) -> list[str]:
    """Say in which of precision, processes and threads a resumed run differs from the steps done.

    Args:
        before: the job that computed them; None if it is unknown.
        config: of the run; with ``train.parts`` another number of processes changes nothing, and without, that is what
            to say, and no threads.
        now: of the run from here on.
        steps: done before.
    """
    if before is None:
        return []
    threads = recorded_threads(before, config, now.processes)
    done, notes = f"the {counted(steps, 'step')} done {'was' if steps == 1 else 'were'} computed", list[str]()
    if before.precision not in ("", now.precision):
        notes.append(f"{done} in {before.precision}; it continues in {now.precision}")
    if not config.train.parts and before.processes != now.processes:
        on = f"{now.processes} processes" if now.processes > 1 else "1 process"
        notes.append(f"{done} on {before.processes}, and it continues on {on}, which rounds differently")
    if now.threads and threads not in (0, now.threads):
        notes.append(
            f"{done} with {counted(threads, 'thread')} in each process, and it continues with {now.threads}, which "
            f"rounds differently; --train.threads {threads} keeps the bits"
        )
    return notes
