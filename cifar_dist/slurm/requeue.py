"""Decide whether a job runs again after an attempt, as a pure function of the state when its training step ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from shlex import quote

from cifar_dist.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_IN_USE,
    EXIT_REQUEUE,
    EXIT_STALLED,
)

_RUNNING = "RUNNING"
_COMPLETING = "COMPLETING"  # until its processes have ended, whatever ended it


class Outcome(StrEnum):
    """The outcome of a job."""

    DONE = "done"
    REQUEUE = "requeue"
    NO_PROGRESS = "no-progress"
    TAKEN_DOWN = "taken-down"
    STOPPED = "stopped"
    REQUEUED = "requeued"
    FAILED = "failed"


@dataclass(frozen=True)
class Attempt:
    """One attempt of a job, after its training step has ended.

    Attributes:
        run: its folder.
        number: number of the attempt, from 1.
        job_state: as ``squeue --format=%T`` prints it; empty if Slurm does not answer.
        requeued: whether Slurm has requeued the job itself, as it does when a node fails.
        exit_code: that the nodes agreed on. 0 also means that all of them stopped on request with a checkpoint,
            ``EXIT_STALLED`` that the watchdog ended them because a rank did not answer any more.
        finished: whether the run is finished.
        began_at: the newest checkpoint when the attempt began; empty if there was none.
        stopped_at: the newest checkpoint now; empty if there is none.
        may_requeue: False for a job with ``--no-requeue``.
        stop_file: whether a file in the run folder asks to stop.
    """

    run: str
    number: int
    job_state: str
    requeued: bool
    exit_code: int
    finished: bool
    began_at: str
    stopped_at: str
    may_requeue: bool = True
    stop_file: bool = False


@dataclass(frozen=True)
class Decision:
    """The outcome of a job, its exit code if it is not requeued, and a line for its output (empty: none)."""

    outcome: Outcome
    exit_code: int
    line: str = ""


def decide(attempt: Attempt) -> Decision:
    """Decide whether the job runs again.

    It does only if it stopped on request, but not by a STOP file, or stalled; made progress; and is still running.
    Slurm reports a job that it terminates (``scancel``, the time limit) in another state, and such a job must not run
    again. A job without progress would stop at the same step forever.
    """
    this = f"attempt {attempt.number}"
    stalled = attempt.exit_code == EXIT_STALLED
    resume = f"to resume: cifar-dist submit resume {quote(attempt.run)} [sbatch options]"
    if attempt.requeued:
        line = f"{this} stopped at {named(attempt.stopped_at)}; Slurm has requeued the job"
        return Decision(Outcome.REQUEUED, EXIT_REQUEUE, line)
    if attempt.exit_code not in (EXIT_DONE, EXIT_REQUEUE, EXIT_STALLED):
        line = f"{this} failed with exit code {attempt.exit_code}, so it is not requeued; the error is above"
        if attempt.stopped_at and attempt.exit_code not in (EXIT_BAD_INPUT, EXIT_IN_USE):  # those say what to do
            line += f"; once its cause is removed, {resume}"
        return Decision(Outcome.FAILED, attempt.exit_code, line)
    if attempt.finished:
        return Decision(Outcome.DONE, EXIT_DONE)
    if attempt.stop_file:
        line = f"{this} stopped at {named(attempt.stopped_at)} as the STOP file asks, so it is not requeued; {resume}"
        return Decision(Outcome.STOPPED, EXIT_REQUEUE, line)
    if attempt.job_state != _RUNNING:
        state = attempt.job_state or "in a state that Slurm does not report"
        if state == _COMPLETING:
            state += " (its time limit, scancel or a preemption)"
        why = f"is not requeued because the job is {state}"
        return Decision(
            Outcome.TAKEN_DOWN, EXIT_REQUEUE, f"{this} stopped at {named(attempt.stopped_at)}, and {why}; {resume}"
        )
    if attempt.stopped_at == attempt.began_at:
        began_at = named(attempt.began_at)
        line = f"{this} made no progress since {began_at}, so it is not requeued; give it more time; {resume}"
        return Decision(Outcome.NO_PROGRESS, EXIT_STALLED if stalled else EXIT_FAILED, line)
    if not attempt.may_requeue:
        why = "is not requeued because the job has --no-requeue"
        line = f"{this} stopped at {named(attempt.stopped_at)}, and {why}; {resume}"
        return Decision(Outcome.STOPPED, EXIT_REQUEUE, line)
    how = "stalled after" if stalled else "stopped at"
    return Decision(Outcome.REQUEUE, EXIT_REQUEUE, f"{this} {how} {named(attempt.stopped_at)}; requeueing")


def named(checkpoint: str) -> str:
    """Name a checkpoint for the reader; the empty string means that none exists."""
    return checkpoint or "the start"
