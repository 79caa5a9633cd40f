"""Processes and machines that never join are named, every ten seconds and when the job gives up."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import soak
from support.running import PATIENCE, TRAIN, environment, finish, free_port, listens, spawn, start, wait_until

from cifar_dist.errors import JoinTimeoutError
from cifar_dist.launch import joining
from cifar_dist.launch.joining import join_ranks


@pytest.mark.parametrize(
    ("rank", "problem"),
    [
        ("0", "2 of 3 have not joined: rank 1, rank 2"),
        ("2", "rank 0 does not answer at 127.0.0.1:{port} (Connection refused)"),
    ],
)
def test_missing_ranks_are_named_repeatedly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], rank: str, problem: str
) -> None:
    port = str(free_port())
    problem = problem.format(port=port)
    now = itertools.count()  # a second passes from one look at the clock to the next
    monkeypatch.setattr(joining, "time", SimpleNamespace(monotonic=lambda: next(now), sleep=lambda _: None))
    place = {"RANK": rank, "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(JoinTimeoutError, match=r"^gave up after 25 s \(run.join_timeout\): ") as error:
        join_ranks(25)
    assert problem in str(error.value)
    said = capfd.readouterr().err
    assert said == "".join(f"cifar-dist: waiting for {seconds} s: {problem}\n" for seconds in (11, 22))


def test_one_machine_of_two_gives_up_before_it_starts_a_rank(digits: Path, tmp_path: Path) -> None:
    recipe = soak.write_recipe(tmp_path, digits)
    place = [
        "--num_machines=2",
        "--machine_rank=0",
        "--main_process_ip=127.0.0.1",
        f"--main_process_port={free_port()}",
    ]
    words = ["launch", "cpu", *place, str(recipe), "--run.join_timeout", "1"]
    command = [sys.executable, "-m", "cifar_dist", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ("cifar-dist: gave up after 1 s (run.join_timeout): 1 of 2 has not joined: machine 1\n")


def test_a_request_to_stop_ends_the_wait_for_other_ranks(tiny: Path) -> None:
    """After ten seconds, in which ranks that start together join."""
    port = free_port()
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    waiting = start([TRAIN, str(tiny)], env=place)
    wait_until(lambda: listens(port), waiting)
    waiting[0].terminate()
    (done,) = finish(waiting)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == "cifar-dist: stopped by TERM"
    assert not (tiny.parent / "runs").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--num_machines=2", "--main_process_ip=127.0.0.1", "--main_process_port={port}"],
        ["--nnodes=2", "--rdzv_endpoint=127.0.0.1:{port}"],
    ],
    ids=["fixed", "elastic"],
)
def test_a_request_to_stop_ends_the_wait_for_other_machines(
    tiny: Path, forked: dict[str, str], options: list[str]
) -> None:
    port = free_port()
    place = [option.format(port=port) for option in options]
    waiting = start(["-m", "cifar_dist", "launch", "cpu", *place, str(tiny)], env=forked)
    wait_until(lambda: listens(port), waiting)
    waiting[0].terminate()
    (done,) = finish(waiting)
    assert done.returncode == 75
    assert done.stderr == "cifar-dist: stopped while no rank was running\n"


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a program that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", free_port())) as server:
        yield server.getsockname()[1]


def test_another_program_in_the_place_of_rank_0_is_named(tiny: Path, silent: int) -> None:
    """Torch waits for its answer for ever, and listens to no signal meanwhile."""
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(silent)}
    (done,) = spawn([TRAIN, str(tiny), "--run.join_timeout", "1"], env=place)
    assert done.returncode == 1
    problem = f"rank 0 is not what answers at 127.0.0.1:{silent}"
    assert done.stderr == f"cifar-dist: gave up after 1 s (run.join_timeout): {problem}\n"


def test_a_port_that_is_not_free_for_rank_0_is_named(tiny: Path, silent: int) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(silent)}
    (done,) = spawn([TRAIN, str(tiny)], env=place)
    assert done.returncode == 2
    assert f"cifar-dist: port {silent} of 127.0.0.1 is not free for rank 0; use another one\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_machines_that_do_not_meet_are_reported_until_the_job_gives_up(
    tiny: Path, forked: dict[str, str], silent: int
) -> None:
    words = ["--nnodes=1:2", f"--rdzv_endpoint=127.0.0.1:{silent}", str(tiny), "--run.join_timeout", "1"]
    (done,) = spawn(["-m", "cifar_dist", "launch", "cpu", *words], env=forked)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("cifar-dist: ")]
    listening = f"what listens at 127.0.0.1:{silent} (--rdzv_endpoint)"
    missing = f"{listening} is no meeting of machines; use another port"
    assert said == [
        f"cifar-dist: waiting for 10 s: {missing}",
        f"cifar-dist: gave up after 11 s (run.join_timeout): {missing}",
    ]


def test_a_machine_waits_for_the_one_where_they_meet(tiny: Path, forked: dict[str, str]) -> None:
    """Torch gives up after a minute or two, with the stack of its C++ code."""
    endpoint = f"127.0.0.1:{free_port()}"
    words = ["--nnodes=1:2", f"--rdzv_endpoint={endpoint}", "--rdzv_conf=is_host=0", str(tiny)]
    (done,) = spawn(["-m", "cifar_dist", "launch", "cpu", *words, "--run.join_timeout", "1"], env=forked)
    assert done.returncode == 1
    problem = f"no machine answers at {endpoint} (--rdzv_endpoint): Connection refused"
    assert f"cifar-dist: gave up after 11 s (run.join_timeout): {problem}\n" in done.stderr


def test_a_machine_alone_is_told_how_many_are_missing(tiny: Path, forked: dict[str, str]) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    words = ["--nnodes=2:4", f"--rdzv_endpoint={endpoint}", str(tiny)]
    waiting = start(["-m", "cifar_dist", "launch", "cpu", *words], env=forked)
    said = ""
    assert waiting[0].stderr is not None
    while "waiting for" not in said:
        said = waiting[0].stderr.readline()
        assert said, "it has ended"
    assert said == f"cifar-dist: waiting for 10 s: 1 of at least 2 machines has met at {endpoint} (--rdzv_endpoint)\n"
    waiting[0].terminate()
    assert finish(waiting)[0].returncode == 75
