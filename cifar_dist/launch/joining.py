"""Wait for all processes, or all machines, of a job before they join, and say which of them are missing.

Torch's own meeting waits in silence: for minutes between the launchers of several machines, for the process group's
timeout between ranks. All of them reach one key-value store, torch's ``TCPStore``, where each announces itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from cifar_dist.errors import JoinTimeoutError, MachineError, UserError
from cifar_dist.launch.waiting import wait_until
from cifar_dist.terminal.notice import notice

if TYPE_CHECKING:
    from torch.distributed import Store

JOB_PORTS = range(20_000, 32_000)
"""Where rank 0 of a Slurm job listens, by the job's number: below 32768, where the system's ports usually begin."""

SAY_SECONDS = 10.0
"""Between two lines about who is missing."""

_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 10.0  # in which the store must answer a request
_NOTICE_SECONDS = 60.0  # in which a machine, however busy, must notice that all have joined
_PORT = "port"  # key of an announcement
_OF_ANOTHER_MEETING = "if machines come and go, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on all of them"


def join_ranks(
    timeout: float,
    poll: Callable[[], None] = lambda: None,
    *,
    description: str = "",
    check: Callable[[Sequence[str]], None] | None = None,
) -> Store | None:
    """Wait for all ranks of the job, as the launcher described it in the environment; call it before torch joins them.

    Args:
        timeout: in seconds.
        poll: called again and again from ten seconds on; what it raises ends the wait.
        description: what this rank says of itself.
        check: called once all have come with what they say, in the order of the ranks; it must raise the same on all.

    Returns:
        The store, which the caller keeps until torch has joined the ranks; None if there is only one rank, or it is not
        known where the ranks meet.

    Raises:
        JoinTimeoutError: some have not come within ``timeout`` seconds, and the message names them; or the launcher's
            store does not answer.
        MachineError: this is rank 0, and its port is in use.
        UserError: of ``check``.
    """
    place = os.environ
    if int(place.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in place or "MASTER_PORT" not in place:
        return None
    rank, host, port = int(place["RANK"]), place["MASTER_ADDR"], int(place["MASTER_PORT"])
    agent_hosts = place.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # Torchrun's store keeps the keys of ranks that have ended, which torch would take for those of these ranks.
    announces = agent_hosts and place.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    call = _RollCall(
        "rank",
        rank,
        int(place["WORLD_SIZE"]),
        host=host,
        port=port,
        hosts=rank == 0 and (announces or not agent_hosts),
        timeout=timeout,
        poll=poll,
        announces=announces,
        description=description,
        check=check,
    )
    store = call.wait()
    if announces:
        place |= {"MASTER_PORT": str(call.port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return store


def join_machines(index: int, machines: int, host: str, port: int, timeout: float) -> None:
    """Wait for the launchers of all machines, before they start ``accelerate launch``, which uses the same port.

    Args:
        index: of this machine, from 0.
        machines: how many there are.
        host, port: of the first one.
        timeout: in seconds.

    Raises:
        JoinTimeoutError: some have not come; the message names them.
    """
    from torch.distributed import DistError

    store = _RollCall("machine", index, machines, host=host, port=port, hosts=index == 0, timeout=timeout).wait()
    if index == 0:
        wait_until(lambda: store.add("seen", 0) >= machines - 1, _NOTICE_SECONDS)
        return
    # The first machine closes the store now, which frees the port; whoever used it before that would be cut off later.
    with (
        contextlib.suppress(OSError, DistError),  # it has closed it: this machine is late
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS) as connection,
    ):
        store.add("seen", 1)
        connection.recv(1)


def open_store(purpose: str, host: str, port: int, *, hosts: bool = False) -> Store:
    """Connect to the job's store; keys of another purpose are out of sight.

    Args:
        purpose: a name for the keys.
        host, port: where the store is.
        hosts: whether it is in this process.
    """
    from torch.distributed import PrefixStore, TCPStore

    # Torch itself opens the store of this process once more, as another tenant.
    timeout = timedelta(seconds=_ANSWER_SECONDS)
    store = TCPStore(host, port, is_master=hosts, timeout=timeout, wait_for_workers=False, multi_tenant=True)
    return PrefixStore(f"cifar-dist/{purpose}", store)


class _RollCall:
    """The members of a job announce themselves at one store, and each waits for all.

    Args:
        what: ``rank`` or ``machine``, as messages name a member.
        index: of this member; the first one reports for those that have met.
        members: how many there are.
        host, port: where the store is; or, if a port is announced, the launcher's.
        hosts: whether the store is in this process.
        timeout: seconds after which missing members are given up.
        poll: called while it waits, from ten seconds on.
        announces: whether the first member takes any free port, and announces it in the launcher's store.
        description, check: as of :func:`join_ranks`.
    """

    def __init__(
        self,
        what: str,
        index: int,
        members: int,
        *,
        host: str,
        port: int,
        hosts: bool,
        timeout: float,
        poll: Callable[[], None] = lambda: None,
        announces: bool = False,
        description: str = "",
        check: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self._what, self._index, self._members = what, index, members
        self._host, self.port, self._hosts = host, port, hosts
        self._timeout, self._poll, self._announces = timeout, poll, announces
        self._description, self._check = description, check
        self._board: Store | None = None
        self._began = self._said = time.monotonic()

    def wait(self) -> Store:
        """Return the store once all members have announced themselves; from then on, ``port`` is that of the store.

        Raises:
            JoinTimeoutError: some are missing, which the message names; or the first one, which may have given up; or
                the launcher's store does not answer.
            MachineError: the port of the store is in use.
            UserError: of the check.
        """
        from torch.distributed import DistError

        try:
            if self._announces:
                self._open_board()
            self._wait_for_host()
            store = self._open_store()
            if self._hosts and self._board is not None:
                self.port = store.underlying_store.port  # type: ignore[attr-defined]
                self._board.set(_PORT, str(self.port))
            store.set(str(self._index), self._description)
            store.add("count", 1)
            while store.add("count", 0) < self._members:
                self._pause(lambda: self._missing(store), reports=self._index == 0)
            if self._hosts and self._board is not None:  # members that start again must not find this one
                self._board.delete_key(_PORT)
            if self._check is not None:
                self._check_descriptions(store, self._check)
        except DistError:
            who = "machine 0" if self._what == "machine" else "rank 0, or the launcher of its machine,"
            problem = f"{who} has left {self._host}:{self.port} before all have joined; see its output"
            raise JoinTimeoutError(problem) from None
        return store

    def _open_board(self) -> None:
        silent = f"torchrun's store does not answer at {self._host}:{self.port}"
        self._board = self._open("restarts", lambda: silent)
        if self._board is None:
            raise JoinTimeoutError(f"{silent}; {_OF_ANOTHER_MEETING}")
        if self._hosts:
            self.port = 0

    def _wait_for_host(self) -> None:
        def problem() -> str:
            if self._board is not None and not announced:
                return f"{self._what} 0 has not joined"
            return f"{self._what} 0 does not answer at {self._host}:{self.port} ({reason})"

        announced = reason = ""
        while not self._hosts:
            if self._board is not None:  # again: it may be that of members that have ended
                announced = self._board.get(_PORT).decode() if self._board.check([_PORT]) else ""
                self.port = int(announced or self.port)
            if announced or self._board is None:
                try:
                    socket.create_connection((self._host, self.port), timeout=_ANSWER_SECONDS).close()
                    return
                except OSError as error:
                    reason = error.strerror or str(error)
            self._pause(problem, remedy="" if self._board is None or announced else f"; {_OF_ANOTHER_MEETING}")

    def _open_store(self) -> Store:
        def problem() -> str:
            return f"{self._what} 0 is not what answers at {self._host}:{self.port}"

        if (store := self._open(self._what, problem, hosts=self._hosts)) is not None:
            return store
        if self._hosts:
            raise MachineError(f"port {self.port} of {self._host} is not free for {self._what} 0; use another one")
        raise JoinTimeoutError(f"{problem()}; use another port")

    def _open(self, purpose: str, problem: Callable[[], str], *, hosts: bool = False) -> Store | None:
        """Open a store in a thread: torch waits for ever for a program that accepts connections and says nothing.

        Args:
            purpose, hosts: as in :func:`open_store`.
            problem: of a wait.

        Returns:
            The store; None where it cannot be opened.
        """
        opened: list[Store | None] = []

        def open_it() -> None:
            try:
                opened.append(open_store(purpose, self._host, self.port, hosts=hosts))
            except RuntimeError:
                opened.append(None)

        thread = threading.Thread(target=open_it, daemon=True)
        thread.start()
        thread.join(_POLL_SECONDS)
        while thread.is_alive():
            self._pause(problem)
            thread.join(_POLL_SECONDS)
        return opened[0]

    def _check_descriptions(self, store: Store, check: Callable[[Sequence[str]], None]) -> None:
        """Check what all members say. None ends before all have read it: the store may end with the first."""
        said = store.multi_get([str(member) for member in range(self._members)])
        try:
            check([text.decode() for text in said])
        except UserError:
            with contextlib.suppress(RuntimeError):  # of torch: the store has ended nevertheless
                store.add("read", 1)
                wait_until(lambda: store.add("read", 0) >= self._members, _ANSWER_SECONDS)
                store.add("left", 1)
                if self._index == 0:
                    wait_until(lambda: store.add("left", 0) >= self._members, _ANSWER_SECONDS)
            raise

    def _missing(self, store: Store) -> str:
        missing = [f"{self._what} {member}" for member in range(self._members) if not store.check([str(member)])]
        have = "has" if len(missing) == 1 else "have"
        return f"{len(missing)} of {self._members} {have} not joined: {', '.join(missing)}"

    def _pause(self, problem: Callable[[], str], *, remedy: str = "", reports: bool = True) -> None:
        """Wait a moment; say what the problem is when it is time to, or give up."""
        now = time.monotonic()
        if now - self._began > self._timeout:
            raise JoinTimeoutError(f"gave up after {self._timeout:.0f} s (run.join_timeout): {problem()}{remedy}")
        if now - self._began > SAY_SECONDS:  # members that start together join first, and stop together
            self._poll()
        if now - self._said > SAY_SECONDS:
            self._said = now
            if reports:
                notice(f"waiting for {now - self._began:.0f} s: {problem()}")
        time.sleep(_POLL_SECONDS)
