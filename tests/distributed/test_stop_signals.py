"""A signal sets a flag; its handler does nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
from support.running import ROOT, environment

from cifar_dist.distributed.stop_signals import StopSignals


@pytest.mark.parametrize(
    ("name", "received"),
    [
        ("SIGTERM", "TERM"),
        ("SIGINT", "Ctrl-C"),
        ("SIGURG", "Ctrl-C"),
        ("SIGUSR1", "USR1"),
        ("SIGUSR2", "USR2"),
    ],
)
def test_a_request_is_noted_and_interrupts_nothing(name: str, received: str) -> None:
    with StopSignals() as signals:
        assert signals.received == ""
        os.kill(os.getpid(), signal.Signals[name])
        assert signals.received == received


def test_the_first_request_is_the_one_that_is_reported() -> None:
    with StopSignals() as signals:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert signals.received == "USR1"


def test_the_previous_handlers_are_restored() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignals():
        assert [signal.getsignal(number) for number in numbers] != before
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before


STUCK = """
import os, signal, sys
from cifar_dist.distributed.stop_signals import StopSignals
with StopSignals() as signals:
    for name in sys.argv[1:]:
        os.kill(os.getpid(), signal.Signals[name])
        print(name, flush=True)
"""


@pytest.mark.parametrize(
    ("sent", "survived"),
    [
        (["SIGINT", "SIGINT", "SIGUSR1"], ["SIGINT"]),
        (["SIGTERM", "SIGINT", "SIGINT"], ["SIGTERM", "SIGINT"]),
        (
            ["SIGTERM", "SIGTERM", "SIGUSR1", "SIGTERM", "SIGINT"],
            ["SIGTERM", "SIGTERM", "SIGUSR1", "SIGTERM", "SIGINT"],
        ),
    ],
)
def test_a_second_ctrl_c_ends_the_process_at_once(sent: list[str], survived: list[str]) -> None:
    """Whichever signal came first. A second TERM does not, because launchers repeat it."""
    done = subprocess.run(
        [sys.executable, "-c", STUCK, *sent],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.split() == survived
    assert done.returncode == (0 if sent == survived else -signal.SIGINT)


OBEYING = [sys.executable, "-c", "print(flush=True); input()"]


def test_processes_that_are_started_inside_survive_the_request() -> None:
    """Slurm sends it to them, too, as a terminal sends Ctrl-C."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    children = []
    for context in (StopSignals(), nullcontext()):
        with context:
            child = subprocess.Popen(OBEYING, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        child.stdout.readline()
    inside, after = children
    for number in numbers:
        inside.send_signal(number)
    after.terminate()
    inside.communicate(b"\n", timeout=300)
    after.communicate(timeout=300)
    assert (inside.returncode, after.returncode) == (0, -signal.SIGTERM)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(numbers), "this process still receives them"
