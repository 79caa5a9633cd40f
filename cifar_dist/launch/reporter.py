"""Choose which of the ranks that fail together reports the error, so that one line is printed and not one for each.

They agree through the job's key-value store. Rank 0, which may host it, waits for the others before it ends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from cifar_dist.launch.joining import open_store
from cifar_dist.launch.waiting import wait_until

if TYPE_CHECKING:
    from torch.distributed import Store

_WAIT_SECONDS = 1.0  # of a rank for the others
_CONNECT_SECONDS = 10.0
_END_SECONDS = 0.2  # in which the system closes the connections of a process that ends


def is_first(purpose: str) -> bool:
    """Whether this rank is the first to ask, for that ``purpose``.

    Rank 0 waits up to a second until all others have asked.
    """

    def came_first(store: Store, is_main: bool, ranks: int) -> bool:
        first = store.add("ranks", 1) == 1
        if is_main:
            wait_until(lambda: store.add("ranks", 0) >= ranks, _WAIT_SECONDS)
        return first

    return _ask(purpose, came_first)


def is_reporter(purpose: str) -> bool:
    """Whether this rank reports what it has met, for that ``purpose``: rank 0 if it has met it too, else the first.

    The others wait up to a second for rank 0 to say so, and rank 0 as long for them to ask.
    """

    def reports(store: Store, is_main: bool, ranks: int) -> bool:
        if is_main:
            store.set("main", "")
            wait_until(lambda: store.add("others", 0) >= ranks - 1, _WAIT_SECONDS)
            return True
        main_reports = wait_until(lambda: store.check(["main"]), _WAIT_SECONDS)
        return store.add("others", 1) == 1 and not main_reports  # last, because rank 0 may end now

    return _ask(purpose, reports)


def _ask(purpose: str, question: Callable[[Store, bool, int], bool]) -> bool:
    """Put a question to the store; the answer is yes where there is no store to ask.

    Args:
        purpose: a name for the keys.
        question: called with the store, whether this is rank 0, and the number of ranks.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return True
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives the ranks of each
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if not _answers(host, port):
            return True
        store = open_store(f"{purpose}/{attempt}", host, port)
        return question(store, os.environ.get("RANK") == "0", ranks)
    except (OSError, RuntimeError, KeyError):  # rank 0, which may host the store, has ended; or its address is unknown
        return True


def _answers(host: str, port: int) -> bool:
    """Whether a process listens there that is not about to end. Torch would try to reach any other for 20 s, and print
    its own stack.

    Raises:
        OSError: nothing listens.
    """
    with socket.create_connection((host, port), timeout=_CONNECT_SECONDS) as connection:
        connection.settimeout(_END_SECONDS)
        try:
            connection.recv(1)  # the store says nothing unless it is asked; the end of its process closes this
        except TimeoutError:
            return True
    return False
