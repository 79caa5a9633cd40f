"""Wait for all processes, or all machines, of a job before they join, and say which of them are missing.

Torch's own meeting waits in silence: for minutes between the launchers of several machines, for the process group's
timeout between ranks. All of them reach one key-value store, torch's ``TCPStore``, where each announces itself.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from cifar_dist.errors import JoinTimeoutError

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore

_SAY_SECONDS = 10.0  # between two lines about who is missing
_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 10.0  # in which the store must answer a request


class Meeting:
    """The members of a job at one store.

    Args:
        what: ``rank`` or ``machine``, as messages name a member.
        index: of this member; the first one speaks for those that have met.
        members: how many there are.
        host, port: where the store is.
        hosts: whether the store is in this process.
        timeout: seconds after which missing members are given up.
    """

    def __init__(
        self, what: str, index: int, members: int, *, host: str, port: int, hosts: bool, timeout: float
    ) -> None:
        self._what, self._index, self._members = what, index, members
        self._host, self._port, self._hosts = host, port, hosts
        self._timeout = timeout
        self._began = self._said = time.monotonic()

    def wait(self) -> TCPStore:
        """Return the store, which the caller keeps, once all members have announced themselves.

        Raises:
            JoinTimeoutError: some are missing; the message names them.
        """
        store = self._connect()
        own = _prefixed(store, self._what)
        own.set(str(self._index), "here")
        own.add("count", 1)
        while own.add("count", 0) < self._members:
            self._pause(lambda: self._missing(own), speaks=self._index == 0)
        return store

    def _connect(self) -> TCPStore:
        from torch.distributed import TCPStore

        while not self._hosts:
            try:
                socket.create_connection((self._host, self._port), timeout=_ANSWER_SECONDS).close()
                break
            except OSError as error:
                reason = error.strerror or str(error)
                self._pause(lambda: f"{self._what} 0 does not answer at {self._host}:{self._port} ({reason})")
        return TCPStore(
            self._host,
            self._port,
            is_master=self._hosts,
            timeout=timedelta(seconds=_ANSWER_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,  # torch itself opens it once more, in the same process
        )

    def _missing(self, store: Store) -> str:
        missing = [str(member) for member in range(self._members) if not store.check([str(member)])]
        return f"{len(missing)} of {self._members} {self._what}s have not joined: {', '.join(missing)}"

    def _pause(self, problem: Problem, *, speaks: bool = True) -> None:
        """Wait a moment; say what the problem is when it is time to, or give up."""
        now = time.monotonic()
        if now - self._began > self._timeout:
            raise JoinTimeoutError(f"gave up after {self._timeout:.0f} s (run.join_timeout): {problem()}")
        if now - self._said > _SAY_SECONDS:
            self._said = now
            if speaks:
                print(f"cifar-dist: waiting for {now - self._began:.0f} s: {problem()}", file=sys.stderr, flush=True)
        time.sleep(_POLL_SECONDS)
