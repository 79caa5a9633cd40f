"""``accelerate launch``, with signals that reach the ranks and the exit code that the ranks agreed on.

The launcher alone does neither: on TERM and INT it gives its ranks 30 seconds and ends in a traceback, USR1 kills it
and leaves them running, and every exit code of a rank becomes 1. Therefore the launcher runs as a child that ignores
these signals, while this process receives them and signals the ranks itself::

    the agent (receives signals) -> its fork (accelerate launch) -> cifar-dist VERB, once for each rank

The agent imports neither torch nor Accelerate. Only its fork does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from cifar_dist.exit_codes import EXIT_REQUEUE, how_it_ended
from cifar_dist.launch.job import Job
from cifar_dist.launch.launcher import launch_ranks
from cifar_dist.launch.options import read_request
from cifar_dist.launch.parent_death import adopt_orphans, signal_on_parent_death
from cifar_dist.launch.signal_queue import SignalQueue, send
from cifar_dist.launch.suspension import suspended_together
from cifar_dist.terminal.notice import notice, print_over
from cifar_dist.terminal.screen import STOPPING

# What the ranks receive for each signal. They do not handle HUP, which a lost terminal sends. A second INT ends a rank
# at once, so the agent sends none, because Slurm sends its own to every process; URG means the same to a rank.
_FORWARDED_AS = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGUSR2: signal.SIGUSR2,
    signal.SIGINT: signal.SIGURG,
    signal.SIGHUP: signal.SIGTERM,
}
_POLL_SECONDS = 0.1
_SEARCH_SECONDS = 1.0  # between two searches for new ranks
_ALONE_SECONDS = 5.0  # without a rank: the launcher waits for other machines, and does not just end


def run_launcher(config: Path, options: Sequence[str], job: Job) -> int:
    """Run ``cifar-dist *job.words`` on many processes and return the exit code that they agreed on.

    Call it in a process that does nothing else, because it replaces the signal handlers permanently.

    Args:
        config: the config of ``accelerate launch``.
        options: options of ``accelerate launch``, each ``--NAME=VALUE``; they override the config.
        job: what the processes do.

    Raises:
        UserError: an option or the config cannot be launched.
    """
    asked = read_request(config, options)
    requests = SignalQueue(_FORWARDED_AS)
    agent = os.getpid()
    adopt_orphans()
    launcher = os.fork()
    if launcher == 0:
        signal_on_parent_death(agent, signal.SIGKILL)
        own = [f"--config_file={config}", *options, "--module", "cifar_dist", *job.words]
        sys.exit(launch_ranks(own, asked, job, _FORWARDED_AS))
    with suspended_together():
        return _relay(requests, launcher)


def _relay(requests: SignalQueue, launcher: int) -> int:
    """Forward signals to the ranks of a launcher until it ends; return the exit code of the job."""
    agent, ranks = os.getpid(), _Ranks(launcher)
    while not (ended := os.waitpid(launcher, os.WNOHANG))[0]:
        fresh = requests.new()
        if requests.received.count(signal.SIGINT) > 1:
            send([psutil.Process(launcher), *ranks.found], signal.SIGKILL)
            return 128 + signal.SIGINT
        if ranks.search() and requests.received:  # one that was still starting up ignored the signal; again is harmless
            send(ranks.found, _FORWARDED_AS[requests.received[0]])
            if ranks.missing_seconds > _ALONE_SECONDS:
                _kill(launcher, agent)
                notice("stopped while no rank was running")
                return EXIT_REQUEUE
        for request in fresh:
            if request == signal.SIGINT:
                print_over(STOPPING, sys.stderr)
            send(ranks.found, _FORWARDED_AS[request])
        time.sleep(_POLL_SECONDS)
    code = os.waitstatus_to_exitcode(ended[1])
    if code >= 0:
        return code
    _end_orphans(agent)
    notice(f"the launcher {how_it_ended(code)}, and its ranks were ended; the same command resumes")
    return 128 - code


class _Ranks:
    """The processes that a launcher has started.

    Attributes:
        found: those of the last search.
    """

    def __init__(self, launcher: int) -> None:
        self._launcher = launcher
        self.found: list[psutil.Process] = []
        self._last_seen = time.monotonic()
        self._next_search = 0.0

    @property
    def missing_seconds(self) -> float:
        """How long there has been none."""
        return time.monotonic() - self._last_seen

    def search(self) -> bool:
        """Look for them, if it is time to; return whether it was."""
        now = time.monotonic()
        if now < self._next_search:
            return False
        self._next_search = now + _SEARCH_SECONDS
        self.found = _children(self._launcher)
        if self.found:
            self._last_seen = now
        return True


def _kill(launcher: int, agent: int) -> None:
    """Kill a launcher and what it may have started meanwhile."""
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    _end_orphans(agent)


def _end_orphans(agent: int) -> None:
    """End the ranks of a killed launcher, those too that it had only just started."""
    orphans = _children(agent)
    send(orphans, signal.SIGKILL)
    psutil.wait_procs(orphans)


def _children(pid: int) -> list[psutil.Process]:
    """List the direct children of a process that may have ended."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []
    return found
