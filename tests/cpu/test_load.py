"""How many threads a run chooses: as many as there are free cores and its network can use, and the same on a resume."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.engines import engine
from support.running import train

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.cpu import load
from cifar_dist.cpu.load import Load, threads_of_each
from cifar_dist.distributed import start
from cifar_dist.distributed.start import start_engine
from cifar_dist.training.setup import build_setup
from cifar_dist.training.threads import settle_threads


@pytest.mark.parametrize(
    ("cores", "allowed", "busy", "own", "threads"),
    [
        (8, 8, 1.0, [1.0], 8),  # it imports its libraries, and nothing else runs
        (8, 8, 2.0, [1.0, 1.0], 4),
        (2, 2, 1.9, [1.0], 1),
        (2, 2, 1.2, [1.0], 2),  # a fifth of a core
        (8, 8, 8.0, [1.0], 1),
        (4, 4, 0.0, [0.0] * 6, 1),  # more processes than cores
        (8, 64, 10.5, [0.5], 8),  # a container's quota, on a host that others use
        (8, 64, 61.0, [1.0], 4),
    ],
)
def test_free_cores_are_divided(cores: int, allowed: int, busy: float, own: list[float], threads: int) -> None:
    assert threads_of_each([Load("here", cores, allowed, busy, used) for used in own]) == threads


def test_all_processes_use_as_many_threads_as_the_busiest_machine_has_free() -> None:
    assert threads_of_each([Load("idle", 8, 8, 1.0, 1.0), Load("busy", 8, 8, 6.0, 1.0)]) == 3


def test_the_load_is_that_of_the_cores_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other cores do not count. To wait for a disk is idle; what another virtual machine steals is busy."""
    stat, second = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    now = SimpleNamespace(wall=100.0, own=7.0)
    monkeypatch.setattr(load, "_STAT", stat)
    monkeypatch.setattr(load, "usable_cores", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    clock = SimpleNamespace(monotonic=lambda: now.wall, process_time=lambda: now.own)
    monkeypatch.setattr(load, "time", clock)

    def write(user: int, other: int, idle: int, iowait: int, steal: int) -> None:
        own = f"{user} 5 9 {idle} {iowait} 0 1 {steal} 3 0"
        stat.write_text(f"cpu  {other} 0 0 0 0 0 0 0 0 0\ncpu0 {own}\ncpu1 {other} 0 0 0 0 0 0 0 0 0\ncpu2 {own}\n")

    write(10, 20, 30, 40, 50)
    load.watch_load()
    now.wall, now.own = 104.0, 8.0
    write(10 + second, 20 + 9 * second, 30 + second, 40 + second, 50 + second)
    assert load.load_since() == Load(platform.node(), 2, 2, busy=1.0, own=0.25)


@pytest.mark.parametrize(("busy", "threads"), [(1.0, 8), (6.0, 3), (8.0, 1)])
def test_a_run_leaves_busy_cores_to_other_programs(monkeypatch: pytest.MonkeyPatch, busy: float, threads: int) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))  # restored at the end
    monkeypatch.setattr(start, "load_since", lambda: Load("here", 8, 8, busy, own=1.0))
    try:
        with start_engine(Config()):
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_resume_keeps_the_number_of_threads(tiny: Path, tmp_path: Path) -> None:
    words = [str(tiny), "--train.threads", "0"]
    path = tmp_path / "runs" / "tiny" / "environment.json"
    (done,) = train(*words, "--train.max_steps", "3")
    assert done.returncode == 0, done.stderr
    environment = json.loads(path.read_text())
    assert environment["run"]["threads"] < 3
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
