"""A process that has waited too long for the others in an exchange, or has lost one of them, ends with one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cifar_dist.errors import CollectiveTimeoutError, LostRankError
from cifar_dist.launch.reporter import is_first

_MESSAGE = "Timed out waiting"
"""Of gloo, in a bare RuntimeError. NCCL ends the process itself, with lines of its own."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


@contextmanager
def waits_explained(timeout: int) -> Iterator[None]:
    """Raise gloo's error of an exchange that took longer than ``timeout`` seconds, or broke, as one of one line."""
    try:
        yield
    except RuntimeError as error:
        if "gloo" in str(error) and any(lost in str(error) for lost in _LOST):
            raise LostRankError(
                f"rank {os.environ.get('RANK', '0')} has lost its connection to another rank, which has failed or was "
                "killed",
                reports=is_first("lost rank"),
            ) from error
        if _MESSAGE not in str(error):
            raise
        raise CollectiveTimeoutError(
            f"rank {os.environ.get('RANK', '0')} has waited {timeout} s for another rank (run.collective_timeout), "
            f"which hangs or is slow; use --run.stall_timeout {max(1, timeout // 2)} to have it named, or "
            f"--run.collective_timeout {2 * timeout}",
            reports=is_first("collective timeout"),
        ) from error
