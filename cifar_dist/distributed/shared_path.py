"""Whether all machines of a job see a path of rank 0, as they must to resume from a run folder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cifar_dist.distributed.ranks import Ranks

SEEN_SECONDS: Final = 5.0  # in which a change must be seen, where a folder is listed anew
_POLL_SECONDS: Final = 0.1


def machines_without(path: Path, ranks: Ranks) -> list[str]:
    """Return the names of the machines that do not see a path, which rank 0 has just written. Collective.

    Args:
        path: of rank 0; that of another rank does not count.
        ranks: this process among all of the job.
    """
    written = ranks.run_on_main(lambda: path)
    is_seen = not ranks.first_of_node or appears(written)
    return [host for host in ranks.gather_objects("" if is_seen else socket.gethostname()) if host]


def appears(path: Path) -> bool:
    """Whether a path is seen within :data:`SEEN_SECONDS`.

    Its folder is listed, because network file systems remember for longer what was not there.
    """
    return wait_for(lambda: path.parent.is_dir() and path.name in os.listdir(path.parent))


def wait_for(happens: Callable[[], bool]) -> bool:
    """Wait for at most :data:`SEEN_SECONDS`; return whether it happened."""
    deadline = time.monotonic() + SEEN_SECONDS
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
