"""``accelerate launch``, such that requests to stop reach the ranks and their exit code comes out.

Alone, the launcher spoils both: TERM and INT give its ranks 30 seconds and then end in a traceback, USR1 kills it and
leaves them running, and every exit code of theirs becomes 1. So it runs as a child that is deaf to these signals,
while this process listens, passes them on, and answers with the code that the ranks agreed on::

    launch/local.sh -> agent.py (listens) -> agent.py (accelerate launch) -> train.py, once per rank

launch/local.sh starts it here, slurm/train.sbatch on every node. Its words are those of ``accelerate launch``.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

import psutil

_EXIT_BAD_INPUT, _EXIT_REQUEUE = 2, 75
# What a rank is told for each. It knows no HUP, which a lost terminal sends; and a second INT ends it at once, so none
# goes from here: Slurm sends its own to every process.
_REQUESTS = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}


def main(words: Sequence[str]) -> int:
    """Run the launcher to its end; returns the exit code."""
    received: list[int] = []
    for number in _REQUESTS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, lambda number, _: received.append(number))
    agent = os.fork()
    if agent == 0:
        return launch(words)
    ranks: list[psutil.Process] = []
    passed_on, look_again = 0, 0.0
    while not (ended := os.waitpid(agent, os.WNOHANG))[0]:
        if received.count(signal.SIGINT) > 1:
            send([psutil.Process(agent), *ranks], signal.SIGKILL)
            return 128 + signal.SIGINT
        if time.monotonic() > look_again:
            ranks = children(agent)
            look_again = time.monotonic() + 1
            if passed_on:  # a rank that was starting has not heard it; for any other it changes nothing
                send(ranks, signal.SIGUSR1)
        for request in received[passed_on:]:
            if request == signal.SIGINT:
                print("cifar-dist: stopping after this step, to save; once more ends it now", file=sys.stderr)
            send(ranks, _REQUESTS[signal.Signals(request)])
            passed_on += 1
        time.sleep(0.1)
    send(ranks, signal.SIGKILL)  # none is left, unless the launcher itself was killed
    code = os.waitstatus_to_exitcode(ended[1])
    return code if code >= 0 else 128 - code


def launch(words: Sequence[str]) -> int:
    """``accelerate launch *words`` in this process; returns its ranks' exit code."""
    os.setsid()  # Ctrl-C goes to the parent alone, which passes it on once
    for number in _REQUESTS:
        signal.signal(number, signal.SIG_IGN)  # inherited by the ranks, until they listen themselves
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # torchrun would listen for TERM, INT and HUP
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's own choice, which it would announce in five lines
    logging.disable(logging.ERROR)

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parser = launch_command_parser()
    parser.usage = "launch/local.sh CONFIG [--ACCELERATE_OPTION=VALUE ...] RECIPE [--section.field VALUE ...]"
    try:
        launch_command(parser.parse_args(words))
    except ChildFailedError as error:
        return failed({f"rank {rank}": failure.exitcode for rank, failure in error.failures.items()})
    except subprocess.CalledProcessError as error:
        return failed({"the process": error.returncode})
    except (ValueError, ConnectionError) as error:  # an option, or a port that is taken
        hint = " Without GPUs: launch/local.sh cpu" if "cuda" in str(error).lower() else ""
        print(f"cifar-dist: accelerate launch: {error}{hint}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    return 0


def failed(codes: dict[str, int]) -> int:
    """The exit code of a job whose ranks ended with these; a negative one is a signal.

    Ranks agree on 75 after the checkpoint is whole, and on 2 before anything is done: one of them says it for all.
    Else a signal is the cause and what the other ranks died of its effect.
    """
    for agreed in (_EXIT_REQUEUE, _EXIT_BAD_INPUT):
        if agreed in codes.values():
            return agreed
    who, code = min(codes.items(), key=lambda item: item[1])
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    print(f"cifar-dist: {who} {how}; what it said is above", file=sys.stderr)
    return code if code >= 0 else 128 - code


def children(pid: int) -> list[psutil.Process]:
    """The direct children of a process that may be gone."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []
    return found


def send(processes: Iterable[psutil.Process], number: int) -> None:
    """Signal processes that may be gone."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
