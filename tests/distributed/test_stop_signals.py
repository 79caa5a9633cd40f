"""A signal sets a flag; its handler does nothing else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.running import PATIENCE, ROOT, TRAIN, environment, finish, start

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


JOINS_ONLY = """
import time
from cifar_dist.distributed.same_settings import check_same_launch, describe_launch
from cifar_dist.launch.joining import join_ranks
store = join_ranks(300, description=describe_launch("DDP", cpu=True), check=check_same_launch)
print("joined", flush=True)
time.sleep(300)
"""
TRAINS = """
import sys
from cifar_dist.cli import run
from cifar_dist.distributed import stop_signals
from cifar_dist.process_exit import exit_with
stop_signals._ANSWER_SECONDS = 0.5
exit_with(lambda: run(["train", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_request_ends_the_wait_for_a_rank_that_joined_and_does_nothing_more(tiny: Path, stuck: int) -> None:
    """Torch waits for it in C++, for as long as run.collective_timeout; a launcher would have to kill this process."""
    code = [JOINS_ONLY if rank == stuck else TRAINS for rank in range(2)]
    running = start(["-c"], 2, of_rank=[[code[0], str(tiny)], [code[1], str(tiny)]])
    stdout = running[stuck].stdout
    assert stdout is not None
    assert stdout.readline() == "joined\n"
    time.sleep(1)  # in which the other one has begun to wait, mostly
    running[1 - stuck].terminate()
    (waited,) = finish([running[1 - stuck]])
    running[stuck].kill()
    running[stuck].communicate()
    assert (waited.returncode, waited.stderr) == (75, "" if stuck == 0 else "cifar-dist: stopped by TERM\n")


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGTERM, "TERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_request_ends_a_download_and_the_wait_for_it_at_once(
    tiny: Path, tmp_path: Path, number: signal.Signals, cause: str
) -> None:
    """A firewall that holds connections would have the library try for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        network = {"https_proxy": proxy, "HTTPS_PROXY": proxy, "HF_HOME": str(tmp_path / "cache")}
        words = [str(tiny), "--model.name", "timm:test_resnet.r160_in1k", "--model.pretrained", "published"]
        running = start([TRAIN, *words], 2, network)
        silent.settimeout(PATIENCE)
        connection, _ = silent.accept()
        with connection:
            for process in running:
                process.send_signal(number)
            done = finish(running)
    assert [one.returncode for one in done] == [75, 75], done[0].stderr
    assert f"cifar-dist: stopped by {cause}\n" in done[0].stderr


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
