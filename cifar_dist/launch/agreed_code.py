"""The exit code of a job, from those of its processes."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cifar_dist.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_DIFFERS,
    EXIT_IN_USE,
    EXIT_REQUEUE,
    EXIT_STALLED,
    how_it_ended,
)
from cifar_dist.terminal.notice import notice

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

AGREED = (EXIT_REQUEUE, EXIT_BAD_INPUT, EXIT_IN_USE, EXIT_STALLED, EXIT_DIFFERS)
"""Exit codes on which the ranks of a job agree; the first of them stands for all."""


@dataclass(frozen=True)
class Failure:
    """How a process of the job ended.

    Attributes:
        who: names the process in messages.
        code: its exit code, not 0; negative for a signal.
        timestamp: when torchrun noticed it, in seconds since the epoch.
    """

    who: str
    code: int
    timestamp: int = 0


def failures_of(found: Mapping[int, ProcessFailure]) -> list[Failure]:
    """Return the failures of ranks that torchrun found, in its order."""
    return [Failure(f"rank {rank}", failure.exitcode, failure.timestamp) for rank, failure in found.items()]


def without_stopped(failures: Sequence[Failure]) -> list[Failure]:
    """Leave out ranks that ended with 75, unless one of them was the first.

    A rank that still waits for the others ends so on torchrun's TERM, and not because the ranks agreed on it.
    """
    stopped_first = min(failures, key=lambda failure: failure.timestamp).code == EXIT_REQUEUE
    return [failure for failure in failures if stopped_first or failure.code != EXIT_REQUEUE]


def agreed_code(failures: Sequence[Failure]) -> int:
    """Return the exit code of a job, from how its ranks failed, and report which of them failed first.

    Ranks agree on 75 once the checkpoint is complete, on 2 and 69 before any work, on 3 after all of it, and on 124
    when one of them does not answer any more, so one such code stands for all. Otherwise the first failure is the
    cause. The others are its effects: ranks lose their connection to the one that failed, and torchrun ends those that
    are left with TERM and, 30 seconds later, KILL.

    Args:
        failures: in the order in which torchrun noticed them.
    """
    failures = without_stopped(failures)
    codes = {failure.code for failure in failures}
    for agreed in AGREED:
        if agreed in codes:
            return agreed
    cause = min(failures, key=lambda failure: (failure.timestamp, _doubt(failure.code)))
    is_kill = cause.code == -signal.SIGKILL  # nothing was printed, and the kernel kills what uses up the memory
    out_of_memory = "if nobody did that, the memory of its machine, job or container ran out"
    hint = out_of_memory if is_kill else "its output is above"
    notice(f"{cause.who} {how_it_ended(cause.code)}; {hint}")
    return cause.code if cause.code >= 0 else 128 - cause.code


def _doubt(code: int) -> int:
    """Return how doubtful it is that a failure caused the others of the same second; 0 is the least.

    A signal ends a rank, and others fail with an exit code because of it. Torchrun's TERM follows any failure at once.
    """
    if code >= 0:
        return 2
    return {-signal.SIGTERM: 3, -signal.SIGKILL: 1}.get(code, 0)
