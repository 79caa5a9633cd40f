"""``accelerate launch``, with signals that reach the ranks and the exit code that the ranks agreed on.

The launcher alone does neither: on TERM and INT it gives its ranks 30 seconds and ends in a traceback, USR1 kills it
and leaves them running, and every exit code of a rank becomes 1. Therefore the launcher runs as a child that ignores
these signals, while this process receives them and signals the ranks itself::

    the agent (receives signals) -> its fork (accelerate launch) -> cifar-dist VERB, once for each rank

The agent imports neither torch nor Accelerate. Only its fork does.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from cifar_dist.errors import JoinTimeoutError, UserError, first_line
from cifar_dist.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_IN_USE,
    EXIT_REQUEUE,
    EXIT_STALLED,
    how_it_ended,
)
from cifar_dist.launch.joining import SAY_SECONDS, join_machines
from cifar_dist.launch.options import LaunchRequest, read_request
from cifar_dist.launch.parent_death import adopt_orphans, announce_launcher, signal_on_parent_death
from cifar_dist.launch.signal_queue import SignalQueue
from cifar_dist.terminal.notice import notice, print_over
from cifar_dist.terminal.progress import waiting
from cifar_dist.terminal.screen import STOPPING

ROOT = Path(__file__).parents[2]  # must be on the path for `import cifar_dist`
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
_GIVE_UP_SECONDS = 10.0  # in which torch's own meeting ends, after its timeout


def run_launcher(config: Path, options: Sequence[str], words: Sequence[str], join_timeout: Callable[[], float]) -> int:
    """Run ``cifar-dist *words`` on many processes and return the exit code that they agreed on.

    Call it in a process that does nothing else, because it replaces the signal handlers permanently.

    Args:
        config: the config of ``accelerate launch``.
        options: options of ``accelerate launch``, each ``--NAME=VALUE``; they override the config.
        words: a verb and its arguments.
        join_timeout: seconds to wait for other machines of the job, if it has several.

    Raises:
        UserError: an option or the config cannot be launched.
    """
    asked = read_request(config, options)
    meeting = _ElasticMeeting(asked.endpoint, join_timeout()) if asked.endpoint else None
    requests = SignalQueue(_FORWARDED_AS)
    agent = os.getpid()
    adopt_orphans()
    launcher = os.fork()
    if launcher == 0:
        signal_on_parent_death(agent, signal.SIGKILL)
        own = [f"--config_file={config}", *options, "--module", "cifar_dist", *words]
        sys.exit(_launch(own, asked, join_timeout))
    ranks = _Ranks(launcher)
    while not (ended := os.waitpid(launcher, os.WNOHANG))[0]:
        fresh = requests.new()
        if requests.received.count(signal.SIGINT) > 1:
            _send([psutil.Process(launcher), *ranks.found], signal.SIGKILL)
            return 128 + signal.SIGINT
        if ranks.search() and requests.received:  # one that was still starting up ignored the signal; again is harmless
            _send(ranks.found, _FORWARDED_AS[requests.received[0]])
            if ranks.missing_seconds > _ALONE_SECONDS:
                _kill(launcher, agent)
                notice("stopped while no rank was running")
                return EXIT_REQUEUE
        if meeting is not None and meeting.is_given_up(ranks.missing_seconds):
            _kill(launcher, agent)
            return EXIT_FAILED
        for request in fresh:
            if request == signal.SIGINT:
                print_over(STOPPING, sys.stderr)
            _send(ranks.found, _FORWARDED_AS[request])
        time.sleep(_POLL_SECONDS)
    code = os.waitstatus_to_exitcode(ended[1])
    if code >= 0:
        return code
    _end_orphans(agent)
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


class _ElasticMeeting:
    """Reports that the machines of an elastic job do not meet, and when to give up.

    Of some causes torch says nothing, and waits for ever.

    Args:
        endpoint: where they meet.
        timeout: the seconds after which torch's own meeting gives up, where it can.
    """

    def __init__(self, endpoint: str, timeout: float) -> None:
        self._endpoint, self._timeout = endpoint, timeout
        self._reported_seconds = 0.0  # how long no rank had run at the last report

    def is_given_up(self, seconds: float) -> bool:
        """Say what is missing, every ten ``seconds`` without a rank; return whether they are too many."""
        gives_up = seconds > self._timeout + _GIVE_UP_SECONDS
        if gives_up or seconds > self._reported_seconds + SAY_SECONDS:
            waited = f"gave up after {seconds:.0f} s (run.join_timeout)" if gives_up else f"waiting for {seconds:.0f} s"
            missing = f"too few machines have met at {self._endpoint} (--rdzv_endpoint) to start a rank"
            notice(f"{waited}: {missing}")
            self._reported_seconds = seconds
        self._reported_seconds = min(self._reported_seconds, seconds)  # ranks have run meanwhile
        return gives_up


def _kill(launcher: int, agent: int) -> None:
    """Kill a launcher and what it may have started meanwhile."""
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    _end_orphans(agent)


def _end_orphans(agent: int) -> None:
    """End the ranks of a killed launcher, those too that it had only just started."""
    orphans = _children(agent)
    _send(orphans, signal.SIGKILL)
    psutil.wait_procs(orphans)


def _launch(words: Sequence[str], asked: LaunchRequest, join_timeout: Callable[[], float]) -> int:
    """Run ``accelerate launch *words`` in this process and return the exit code of its ranks.

    Raises:
        JoinTimeoutError: another machine of the job did not come.
        UserError: Accelerate does not know an option.
    """
    announce_launcher()
    os.setsid()  # Ctrl-C reaches only the agent, which forwards it once
    for number in _FORWARDED_AS:
        signal.signal(number, signal.SIG_IGN)  # the ranks inherit this until they install their own handlers
    _prepare_environment()
    logging.disable(logging.ERROR)

    with waiting("loading Accelerate"):
        from accelerate.commands.launch import launch_command, launch_command_parser
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError

        from cifar_dist.launch import elastic

    parser = launch_command_parser()
    parser.error = _refuse
    elastic.add_options(parser)
    arguments = parser.parse_args([f"--log_dir={os.devnull}", *words])  # else torchrun leaves an empty folder in /tmp
    if elastic.is_elastic(arguments):
        elastic.prepare(arguments, join_timeout())
    else:
        _join_other_machines(arguments, asked, join_timeout)
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        failures = error.failures.items()
        return agreed_code([Failure(f"rank {rank}", found.exitcode, found.timestamp) for rank, found in failures])
    except subprocess.CalledProcessError as error:
        return agreed_code([Failure("the process", error.returncode)])
    except RendezvousError as error:
        raise JoinTimeoutError(f"the machines do not meet at {arguments.rdzv_endpoint}: {first_line(error)}") from None
    except (ValueError, ConnectionError) as error:  # a wrong option, or a port in use
        hint = " Without GPUs: cifar-dist launch cpu" if "cuda" in str(error).lower() else ""
        notice(f"accelerate launch: {error}{hint}")
        return EXIT_BAD_INPUT
    return EXIT_DONE


def _join_other_machines(arguments: argparse.Namespace, asked: LaunchRequest, timeout: Callable[[], float]) -> None:
    """Wait for the launchers of the other machines, where there are several and each has its own.

    Raises:
        JoinTimeoutError: some did not come.
    """
    if asked.machines > 1 and asked.host:
        arguments.main_process_port = asked.port  # with 0, as in launch/, each machine would choose its own
        if arguments.rdzv_backend == "static":
            join_machines(asked.machine_rank, asked.machines, asked.host, asked.port, timeout())


def _refuse(problem: str) -> NoReturn:
    raise UserError(f"accelerate launch: {problem}; its options: accelerate launch --help")


def _prepare_environment() -> None:
    """Set what the launcher and its ranks read from the environment."""
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # otherwise torchrun would handle TERM, INT and HUP
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's default, which it would announce in five lines
    _prepend("PATH", Path(sys.executable).parent)  # DeepSpeed finds programs by name
    # The ranks import the package that this process runs, not another one in the working folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    if str(ROOT) != sysconfig.get_path("purelib"):
        _prepend("PYTHONPATH", ROOT)


def _prepend(variable: str, folder: Path) -> None:
    os.environ[variable] = os.pathsep.join([str(folder), *filter(None, [os.environ.get(variable)])])


@dataclass(frozen=True)
class Failure:
    """How a process of the job ended.

    Attributes:
        who: names the process in messages.
        code: its exit code, not 0; negative for a signal.
        timestamp: when torchrun noticed it, in seconds since the epoch.
    """

    who: str
    code: int
    timestamp: int = 0


def agreed_code(failures: Sequence[Failure]) -> int:
    """Return the exit code of a job, from how its ranks failed, and report which of them failed first.

    Ranks agree on 75 once the checkpoint is complete, on 2 and 69 before any work, and on 124 when one of them does not
    answer any more, so one such code stands for all. Otherwise the first failure is the cause. The others are its
    effects: ranks lose their connection to the one that failed, and torchrun ends those that are left with TERM and,
    30 seconds later, KILL.
    """
    codes = {failure.code for failure in failures}
    for agreed in (EXIT_REQUEUE, EXIT_BAD_INPUT, EXIT_IN_USE, EXIT_STALLED):
        if agreed in codes:
            return agreed
    cause = min(failures, key=lambda failure: (failure.timestamp, _doubt(failure.code)))
    notice(f"{cause.who} {how_it_ended(cause.code)}; its output is above")
    return cause.code if cause.code >= 0 else 128 - cause.code


def _doubt(code: int) -> int:
    """Return how doubtful it is that a failure caused the others of the same second; 0 is the least.

    A signal ends a rank, and others fail with an exit code because of it. Torchrun's TERM follows any failure at once.
    """
    if code >= 0:
        return 2
    return {-signal.SIGTERM: 3, -signal.SIGKILL: 1}.get(code, 0)


def _children(pid: int) -> list[psutil.Process]:
    """List the direct children of a process that may have ended."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []
    return found


def _send(processes: Iterable[psutil.Process], number: int) -> None:
    """Signal processes that may have ended."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            pass
