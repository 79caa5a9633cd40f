"""A process that has waited too long for the others in an exchange ends with one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cifar_dist.errors import CollectiveTimeoutError
from cifar_dist.launch.joining import is_first

_MESSAGE = "Timed out waiting"
"""Of gloo, in a bare RuntimeError. NCCL ends the process itself, with lines of its own."""


@contextmanager
def waits_explained(timeout: int) -> Iterator[None]:
    """Raise an error of an exchange that took longer than ``timeout`` seconds as :class:`CollectiveTimeoutError`."""
    try:
        yield
    except RuntimeError as error:
        if _MESSAGE not in str(error):
            raise
        raise CollectiveTimeoutError(
            f"rank {os.environ.get('RANK', '0')} has waited {timeout} s for another rank (run.collective_timeout), "
            f"which hangs or is slow; use --run.stall_timeout {max(1, timeout // 2)} to have it named, or "
            f"--run.collective_timeout {2 * timeout}",
            reports=is_first("collective timeout"),
        ) from error
