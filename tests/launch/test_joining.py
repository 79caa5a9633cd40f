"""Processes and machines that never join are named, every ten seconds and when the job gives up."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import soak
from support.running import PATIENCE, environment, free_port

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
