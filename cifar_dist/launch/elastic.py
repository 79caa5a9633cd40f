"""Elastic jobs: machines come and go, and the ranks start again on those that are left, from the newest checkpoint.

The launchers of all machines meet at a store on one of them: torchrun's ``c10d`` rendezvous, in which each proves with
a heartbeat that it lives. A machine that is lost makes the ranks of the others fail; one that joins makes them save and
stop. Then the launchers meet again, and start ranks with new numbers. What torchrun lacks is added here: ranks that
agreed to end are not started again, those that are stopped get the time that a save takes, and those that wait for a
machine without a heartbeat are ended. They would wait long: a power failure closes no connection, and gloo does not
always notice one that is closed while it sends. And a machine whose ranks end after those at the store returns their
exit code, although the store has ended.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import ClassVar

import psutil
from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError, RendezvousTimeoutError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname
from torch.distributed.launcher import api as launcher

from cifar_dist.errors import first_line
from cifar_dist.exit_codes import EXIT_REQUEUE, EXIT_STALLED, GRACE_SECONDS
from cifar_dist.launch.agreed_code import AGREED, failures_of, without_stopped
from cifar_dist.launch.gpus import check_gpus_apart
from cifar_dist.launch.job import Job
from cifar_dist.launch.launched import RESTARTED
from cifar_dist.launch.meeting import Meeting
from cifar_dist.launch.options import LaunchRequest, split_endpoint
from cifar_dist.launch.signal_queue import MACHINE_JOINS
from cifar_dist.terminal.notice import notice

_RESTARTS = 3  # unless --max_restarts says otherwise; that a machine joins costs none
_LAST_CALL_SECONDS = 10  # between the arrival of the last machine required and a start without the others
_LAST_SECONDS = 5  # the same after a machine was lost, without which its ranks' states cannot be gathered
_ENDING_SECONDS = 45  # after the store is lost: ranks that agreed to end have saved, and rank 0 may draw the report
_REPEAT_SECONDS = 1.0  # between two requests: a rank that is starting up ignores them
_STARTING_SECONDS = 60  # after which a machine joins a job whose ranks have not begun to train
_POLL_SECONDS = 0.1
_PROGRAM = "cifar_dist"  # the module that precedes the words of a job
_AGREED_CODES = set(AGREED) - {EXIT_STALLED}  # after a stall the job continues without the rank that hung


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add torchrun's options for elastic jobs to those of ``accelerate launch``, with torchrun's defaults.

    ``--max_restarts`` is None unless it is given.
    """
    parser.set_defaults(max_restarts=None)
    for name, metavar, text in (
        ("nnodes", "MIN:MAX", "Machines of an elastic job; --num_processes is for each."),
        ("rdzv_endpoint", "HOST:PORT", "One of these machines, where they meet."),
        ("rdzv_id", "NAME", "The job, where several meet at one endpoint."),
        ("local_addr", "HOST", "What the others call this machine."),
    ):
        parser.add_argument(f"--{name}", metavar=metavar, help=text, default=argparse.SUPPRESS)


def is_elastic(arguments: argparse.Namespace) -> bool:
    """Whether ``accelerate launch`` is asked for an elastic job."""
    return "nnodes" in arguments


def prepare(arguments: argparse.Namespace, asked: LaunchRequest, job: Job) -> None:
    """Have ``accelerate launch`` start an elastic job.

    Args:
        arguments: of ``accelerate launch``; changed.
        asked: what they say about machines.
        job: what its ranks do.

    Raises:
        UserError: this machine would end the others' job.
    """
    least, _, most = arguments.nnodes.partition(":")
    machines = range(int(least), int(most or least) + 1)
    job.check_elastic(asked, [number * asked.processes for number in machines] if asked.processes else [])
    check_gpus_apart(asked)
    arguments.rdzv_backend = "c10d"
    conf = f"join_timeout={job.join_timeout:.0f},last_call_timeout={_LAST_CALL_SECONDS}"
    arguments.rdzv_conf = ",".join(filter(None, [conf, arguments.rdzv_conf]))
    if arguments.max_restarts is None:
        arguments.max_restarts = _RESTARTS
    # Otherwise ranks of different numbers of machines would find each other's keys in one store.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    launcher.LocalElasticAgent = ElasticAgent  # type: ignore[attr-defined]
    signal.signal(MACHINE_JOINS, signal.SIG_IGN)  # the ranks inherit this until they listen
    ElasticAgent.job, ElasticAgent.asked = job, asked
    ElasticAgent.meeting = meeting = Meeting(arguments.rdzv_endpoint, job.join_timeout)
    meeting.watch()
    if not _hosts(arguments):
        meeting.wait_for_host()


def has_found_meeting() -> bool:
    """Whether this machine has found the others of an elastic job."""
    return ElasticAgent.meeting is not None and ElasticAgent.meeting.is_found


def describe_failure(endpoint: str, error: Exception) -> str:
    """Return in one line why a meeting failed."""
    meeting = ElasticAgent.meeting
    if isinstance(error, RendezvousTimeoutError) and meeting is not None:
        missing = meeting.problem() or f"not all machines of this job still answer at {endpoint} (--rdzv_endpoint)"
        return f"gave up after {ElasticAgent.job.join_timeout:.0f} s (run.join_timeout): {missing}"
    if has_found_meeting():
        return f"the machine at {endpoint} (--rdzv_endpoint), where they meet, has left: the job ended without this one"
    return f"the machines do not meet at {endpoint}: {first_line(error)}"


def _hosts(arguments: argparse.Namespace) -> bool:
    """Whether this machine is the one where they meet; have torch know it where it does not see that itself."""
    asked = re.search(r"\bis_host=(\w+)", arguments.rdzv_conf)
    if asked:
        return asked[1].lower() in ("1", "true", "t", "yes", "y")
    host, _ = split_endpoint(arguments.rdzv_endpoint)
    if _matches_machine_hostname(host):
        return True
    is_own = _is_own_address(host)
    if is_own:
        arguments.rdzv_conf += ",is_host=True"
    return is_own


def _is_own_address(host: str) -> bool:
    """Whether a host is an interface of this machine, such as a second network; torch knows those of its host name."""
    try:
        asked = {str(found[4][0]).partition("%")[0] for found in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    own = {one.address.partition("%")[0] for interface in psutil.net_if_addrs().values() for one in interface}
    return not asked.isdisjoint(own)


class ElasticAgent(LocalElasticAgent):
    """torchrun's agent of one machine, which knows the exit codes of the ranks and the heartbeats of the others."""

    job: ClassVar[Job]
    asked: ClassVar[LaunchRequest]
    meeting: ClassVar[Meeting | None] = None
    _has_started = False  # ranks of this machine
    _stop_seconds: float = GRACE_SECONDS
    _stop_signal = signal.SIGTERM
    _store_failed: tuple[float, RendezvousError] | None = None  # when, and how

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        handler = self._worker_group.spec.rdzv_handler
        # Torch asks it, too, after each look at the ranks.
        handler.num_nodes_waiting = partial(self._machines_waiting, handler.num_nodes_waiting)  # type: ignore[method-assign]
        result: RunResult | None = super().run(role)
        if result is None:  # the job ended while this machine waited for a place; torchrun takes that for a result
            raise RendezvousClosedError
        return result

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        handler = worker_group.spec.rdzv_handler
        assert isinstance(handler, DynamicRendezvousHandler)
        assert self.meeting is not None
        self.meeting.begin(handler)
        try:
            self._check_machine(handler)
        except Exception:
            handler.shutdown = lambda: True  # type: ignore[method-assign]  # it would end the job on all machines
            raise
        super()._rendezvous(worker_group)
        self.meeting.end()
        patience = handler.settings.timeout  # at the next start, the machines that are left have loaded everything
        patience._last_call = min(patience.last_call, timedelta(seconds=_LAST_CALL_SECONDS))
        if handler._state_holder.state.round:  # it counts the meetings, also those before this machine came
            program = worker_group.spec.args
            worker_group.spec.args = (*program[: program.index(_PROGRAM) + 1], *self.job.words_to_continue())
            os.environ[RESTARTED] = "1"
        self._has_started = True
        first = worker_group.workers[0]
        if first.global_rank == 0:
            notice(f"machines: {worker_group.group_world_size}, processes: {first.world_size}")

    def _check_machine(self, handler: DynamicRendezvousHandler) -> None:
        """Refuse this machine if its ranks would refuse to train, with an exit code that ends all machines.

        It has been checked when it arrived, but a GPU may fail later; and the job that it joins may have been between
        two starts of its ranks, in which no process trains.

        Raises:
            UserError: what it lacks.
        """
        if self._has_started:
            check_gpus_apart(self.asked)
            return
        starts, deadline = self.job.starts(), time.monotonic() + _STARTING_SECONDS
        are_starting = starts is not None and not self.job.is_training()
        while not handler.is_closed():
            state = handler._state_holder.state
            if not (are_starting and state.complete and self.job.starts() == starts and time.monotonic() < deadline):
                self.job.check_elastic(self.asked, [], has_begun=state.round > 0)
                break
            time.sleep(_REPEAT_SECONDS)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Return the state of the ranks; torchrun starts those again that failed, and all when a machine waits."""
        self._stop_seconds, self._stop_signal = GRACE_SECONDS, MACHINE_JOINS
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.HEALTHY and self._remaining_restarts:
            machines = worker_group.group_world_size or 0
            gone = machines - self._machines_alive(worker_group)
            if gone > 0:
                notice(f"{gone} of {machines} machines gone or without a heartbeat; {self._again()}")
                self._stop_seconds, self._stop_signal = _LAST_SECONDS, signal.SIGTERM
                return RunResult(WorkerState.UNHEALTHY)
        if result.state != WorkerState.FAILED:
            return result
        codes = {failure.code for failure in without_stopped(failures_of(result.failures))}
        if EXIT_REQUEUE in codes and worker_group.spec.rdzv_handler.num_nodes_waiting() > 0:
            return RunResult(WorkerState.HEALTHY)  # they stopped for a machine that joins
        self._stop_signal = signal.SIGTERM
        if codes & _AGREED_CODES:
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            if self._store_failed is not None:
                raise self._store_failed[1]  # there is no meeting in which to start again
            failed = ", ".join(f"rank {rank}" for rank in result.failures)
            notice(f"{failed} failed; {self._again()}")
        return result

    def _machines_waiting(self, ask: Callable[[], int]) -> int:
        """Return how many machines wait to join: 0 once the store is lost, while ranks of this machine may yet end.

        They have agreed on an exit code with those of the machine that had the store, or fail without them.

        Raises:
            RendezvousError: the store is lost, and ranks that agreed to end would have ended.
        """
        if self._store_failed is None:
            try:
                return ask()
            except RendezvousError as error:
                self._store_failed = time.monotonic(), error
        since, lost = self._store_failed
        if time.monotonic() - since > _ENDING_SECONDS:
            raise lost
        return 0

    def _again(self) -> str:
        return f"starting again on the machines left ({self._remaining_restarts} times at most)"

    def _machines_alive(self, worker_group: WorkerGroup) -> int:
        """Return how many of the machines of these ranks are still in the job."""
        meeting = worker_group.spec.rdzv_handler
        assert isinstance(meeting, DynamicRendezvousHandler)
        if meeting.num_nodes_waiting():  # it reads the state of the meeting; all start again anyway
            return worker_group.group_world_size or 0
        return len(meeting._state_holder.state.participants)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        assert isinstance(self._pcontext, SubprocessContext)
        ranks = [handler.proc for handler in self._pcontext.subprocess_handlers.values()]
        request_end(ranks, self._stop_signal, self._stop_seconds)
        self._shutdown(timeout=1)


def request_end(processes: Sequence[subprocess.Popen[bytes]], request: signal.Signals, seconds: float) -> None:
    """Send a signal to processes, again and again, until they have ended or ``seconds`` have passed."""
    deadline, next_request = time.monotonic() + seconds, 0.0
    while (running := [one for one in processes if one.poll() is None]) and (now := time.monotonic()) < deadline:
        if now >= next_request:
            next_request = now + _REPEAT_SECONDS
            for process in running:
                process.send_signal(request)
        time.sleep(_POLL_SECONDS)
