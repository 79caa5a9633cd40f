"""Says what the machines of an elastic job wait for before their ranks start, and ends a wait that is too long.

Torch waits in silence, and of some causes for ever. A thread says what is missing while this process waits in it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from cifar_dist.exit_codes import EXIT_FAILED
from cifar_dist.formatting import counted
from cifar_dist.launch.joining import SAY_SECONDS
from cifar_dist.launch.options import split_endpoint
from cifar_dist.terminal.notice import notice

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 5.0  # of a machine for a connection
_GIVE_UP_SECONDS = 10.0  # in which torch's own meeting ends, after its timeout


class Meeting:
    """The machines of an elastic job, from this machine's arrival to the start of its ranks, again and again.

    Args:
        endpoint: where they meet, as HOST:PORT.
        timeout: seconds after which this machine gives up, where torch does not.
    """

    def __init__(self, endpoint: str, timeout: float) -> None:
        self._endpoint, self._timeout = endpoint, timeout
        self._handler: DynamicRendezvousHandler | None = None
        self._began: float | None = time.monotonic()  # None while ranks run
        self._said = ""
        self._has_started = False

    def watch(self) -> None:
        """Start to say what is missing. It ends with this process."""
        threading.Thread(target=self._watch, daemon=True).start()

    def wait_for_host(self) -> None:
        """Wait until a machine answers at the endpoint: torch's store gives up after a minute."""
        while self._connection_problem():
            time.sleep(_POLL_SECONDS)

    @property
    def is_found(self) -> bool:
        """Whether this machine has found the others' meeting."""
        return self._handler is not None

    def begin(self, handler: DynamicRendezvousHandler) -> None:
        """Note that this machine waits in ``handler``, whose own timeout begins now."""
        self._handler = handler
        self._began = time.monotonic()

    def end(self) -> None:
        """Note that its ranks start."""
        self._began = None
        self._has_started = True

    def problem(self) -> str:
        """Say what is missing; empty if nothing is, but time."""
        if self._handler is None:
            return self._connection_problem() or (
                f"what listens at {self._endpoint} (--rdzv_endpoint) is not a meeting of machines; use another port"
            )
        state, least = self._handler._state_holder.state, self._handler.settings.min_nodes
        machines = len({*state.participants, self._handler._this_node})  # torch removes one that has given up
        if state.complete or machines >= least:
            return ""
        have = "has" if machines == 1 else "have"
        return f"{machines} of at least {least} machines {have} met at {self._endpoint} (--rdzv_endpoint)"

    def _watch(self) -> None:
        since, next_line = self._began, SAY_SECONDS
        while True:
            time.sleep(_POLL_SECONDS)
            began = self._began
            if began != since:
                since, next_line, self._said = began, SAY_SECONDS, ""
            if began is None:
                continue
            if (waited := time.monotonic() - began) > min(next_line, self._timeout + _GIVE_UP_SECONDS):
                next_line = waited + SAY_SECONDS
                self._report(waited)

    def _report(self, waited: float) -> None:
        problem = self.problem()
        if problem and waited > self._timeout + _GIVE_UP_SECONDS:
            notice(f"gave up after {waited:.0f} s (run.join_timeout): {problem}")
            os._exit(EXIT_FAILED)  # without ranks, and with a main thread that does not listen
        text = problem or self._patience()
        if text and (problem or text != self._said):
            notice(f"waiting for {waited:.0f} s: {text}")
        self._said = text

    def _patience(self) -> str:
        """Why a machine waits although enough have met; empty if its ranks are about to start."""
        assert self._handler is not None
        state, own = self._handler._state_holder.state, self._handler._this_node
        machines = len(state.participants)
        number = counted(machines, "machine")
        train = f"{number} train{'s' if machines == 1 else ''}"
        if own in state.redundancy_list:
            return f"{train}, as many as --nnodes asks for; this one may replace one"
        if own in state.wait_list and self._has_started:  # its ranks have stopped, and those of the others may not
            return f"{number} must stop, or be given up as lost, before the others start again"
        if own in state.wait_list:
            return f"{train}; all save, stop and start again with this one"
        if state.complete and own not in state.participants:
            return f"the ranks of {number} start; this machine joins once they train"
        return ""

    def _connection_problem(self) -> str:
        host, port = split_endpoint(self._endpoint)
        try:
            socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
        except OSError as error:
            return f"no machine answers at {self._endpoint} (--rdzv_endpoint): {error.strerror or error}"
        return ""
