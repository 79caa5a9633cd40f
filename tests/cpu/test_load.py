"""How many threads a run chooses: as many as there are free cores and its network can use, and the same on a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.engines import engine
from support.running import train

from cifar_dist import recipe
from cifar_dist.cpu.load import Load, threads_of_each
from cifar_dist.training.setup import build_setup
from cifar_dist.training.threads import settle_threads


@pytest.mark.parametrize(
    ("cores", "busy", "own", "threads"),
    [
        (8, 1.0, [1.0], 8),  # it imports its libraries, and nothing else runs
        (8, 2.0, [1.0, 1.0], 4),
        (2, 1.9, [1.0], 1),
        (2, 1.2, [1.0], 2),  # a fifth of a core
        (8, 8.0, [1.0], 1),
        (4, 0.0, [0.0] * 6, 1),  # more processes than cores
    ],
)
def test_free_cores_are_divided(cores: int, busy: float, own: list[float], threads: int) -> None:
    assert threads_of_each([Load("here", cores, busy, used) for used in own]) == threads


def test_all_processes_use_as_many_threads_as_the_busiest_machine_has_free() -> None:
    assert threads_of_each([Load("idle", 8, 1.0, 1.0), Load("busy", 8, 6.0, 1.0)]) == 3


def test_a_busy_machine_is_left_its_cores_and_a_resume_keeps_the_number(tiny: Path, tmp_path: Path) -> None:
    words = [str(tiny), "--train.threads", "0"]
    path = tmp_path / "runs" / "tiny" / "environment.json"
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        (done,) = train(*words, "--train.max_steps", "3")
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert done.returncode == 0, done.stderr
    environment = json.loads(path.read_text())
    assert environment["run"]["threads"] == 1
    environment["run"]["threads"] = 3
    path.write_text(json.dumps(environment))
    (done,) = train(*words, "--train.max_steps", "4")
    assert done.returncode == 0, done.stderr
    assert "cpu with 3 threads" in done.stdout


def test_a_small_network_takes_few_threads(tiny: Path) -> None:
    before = torch.get_num_threads()
    config = recipe.load(str(tiny), ["--train.threads", "0", "--train.batch_size", "10"])
    ranks = engine(config).ranks
    try:
        torch.set_num_threads(64)
        settle_threads(build_setup(config, ranks), ranks, None)
        assert torch.get_num_threads() < 8
    finally:
        torch.set_num_threads(before)
