"""A process that has waited too long for the others in an exchange, or has lost one of them, ends with one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from cifar_dist.distributed.out_of_memory import is_out_of_memory
from cifar_dist.errors import CollectiveTimeoutError, LostRankError, RankError, first_line, printable
from cifar_dist.launch.launched import machine_name
from cifar_dist.launch.reporter import is_first

_MESSAGE = "Timed out waiting"
"""Of gloo, in a bare RuntimeError. NCCL ends the process itself, with lines of its own."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""Of gloo; the last, and sometimes others, of NCCL."""
_CAUSE = "Last error:"
"""Of NCCL, before the line that says what failed. The lines above name kinds of errors."""
_SHARED_MEMORY = "/dev/shm"


@contextmanager
def waits_explained(timeout: int) -> Iterator[None]:
    """Raise an error of an exchange as one of one line: gloo's of more than ``timeout`` seconds, and broken ones.

    Raises:
        CollectiveTimeoutError: gloo has waited too long.
        LostRankError: another rank has ended.
        RankError: NCCL has failed for another reason than a lack of memory.
    """
    try:
        yield
    except RuntimeError as error:
        text, rank = str(error), os.environ.get("RANK", "0")
        of_nccl = isinstance(error, dist.DistBackendError) and "NCCL" in text and not is_out_of_memory(error)
        if ("gloo" in text or of_nccl) and any(lost in text for lost in _LOST):
            raise LostRankError(
                f"rank {rank} has lost its connection to another rank, which has failed or was killed",
                reports=is_first("lost rank"),
            ) from error
        if of_nccl:
            raise RankError(_describe_failure(error, rank), reports=is_first("nccl")) from error
        if _MESSAGE not in text:
            raise
        raise CollectiveTimeoutError(
            f"rank {rank} has waited {timeout} s for another rank (run.collective_timeout), which hangs or is slow, or "
            f"this job was suspended; use --run.stall_timeout {max(1, timeout // 2)} to have it named, or "
            f"--run.collective_timeout {2 * timeout}",
            reports=is_first("collective timeout"),
        ) from error


def _describe_failure(error: Exception, rank: str) -> str:
    """Say what failed, and the remedy."""
    cause = str(error).partition(_CAUSE)[2].strip()
    reason = cause.splitlines()[0] if cause else first_line(error)
    remedy = "set NCCL_DEBUG=INFO to learn more"
    if _SHARED_MEMORY in reason:
        remedy = f"{_SHARED_MEMORY} is small in Docker's containers: start them with --shm-size=1g or --ipc=host"
    return f"NCCL failed on rank {rank} of {machine_name()} ({printable(reason)}); {remedy}"
