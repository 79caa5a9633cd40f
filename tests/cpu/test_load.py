"""How many threads a run chooses: as many as there are free cores and its network can use, and the same on a resume."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.engines import engine
from support.running import train

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.cpu import load, openmp
from cifar_dist.cpu.load import Load, threads_of_each
from cifar_dist.distributed import start
from cifar_dist.distributed.start import start_engine
from cifar_dist.tracking import timeline
from cifar_dist.tracking.jobs import recorded_threads
from cifar_dist.tracking.timeline import Event
from cifar_dist.training.setup import build_setup
from cifar_dist.training.threads import settle_threads


@pytest.fixture
def own_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the number of threads after the test."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    yield
    torch.set_num_threads(before)


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


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize(("busy", "threads"), [(1.0, 8), (6.0, 3), (8.0, 1)])
def test_a_run_leaves_busy_cores_to_other_programs(monkeypatch: pytest.MonkeyPatch, busy: float, threads: int) -> None:
    monkeypatch.setattr(start, "load_since", lambda: Load("here", 8, 8, busy, own=1.0))
    with start_engine(Config()):
        assert torch.get_num_threads() == threads


def test_a_resume_keeps_the_number_of_threads(tiny: Path, tmp_path: Path) -> None:
    words = [str(tiny), "--train.threads", "0"]
    path = tmp_path / "runs" / "tiny" / "timeline.jsonl"
    (done,) = train(*words, "--train.max_steps", "3")
    assert done.returncode == 0, done.stderr
    (started,) = timeline.starts(timeline.read(path))
    assert 0 < started.threads < 3
    path.write_text(path.read_text().replace(f'"threads": {started.threads}', '"threads": 3'))
    (done,) = train(*words, "--train.max_steps", "4")
    assert done.returncode == 0, done.stderr
    assert "cpu with 3 threads" in done.stdout


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize(("parts", "threads"), [("0", 1), ("2", 3)])
def test_fixed_parts_keep_the_number_of_threads_on_any_number_of_processes(
    tiny: Path, tmp_path: Path, parts: str, threads: int
) -> None:
    """Their bits depend on the threads alone; without parts, the processes round differently anyway."""
    config = recipe.load(str(tiny), ["--train.threads", "0", "--train.parts", parts])
    recorded = Event("", "started", 0, processes=2, threads=3)
    assert recorded_threads(recorded, config, 1) == (threads if threads > 1 else 0), "which a replay takes"
    assert recorded_threads(recorded, config, 2) == 3
    ranks = engine(config).ranks
    torch.set_num_threads(1)  # cores that are free
    settle_threads(build_setup(config, ranks), ranks, recorded)
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("own_threads")
def test_more_threads_than_cores_are_kept_with_a_warning(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe.load(str(tiny), ["--train.threads", "0", "--train.parts", "2"])
    recorded = Event("", "started", 0, processes=1, threads=3)
    ranks = engine(config).ranks
    monkeypatch.setattr(openmp, "usable_cores", lambda: 4)
    assert settle_threads(build_setup(config, ranks), ranks, recorded) == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    (note,) = settle_threads(build_setup(config, ranks), ranks, recorded)
    assert torch.get_num_threads() == 3
    assert note.startswith("each process keeps the 3 threads of the steps done, and this machine has cores for 2: slow")
    assert note.endswith("--train.threads 2 is faster, and rounds differently")


def test_a_resume_says_that_its_number_of_threads_rounds_differently(tiny: Path, tmp_path: Path) -> None:
    words = [str(tiny), "--train.parts", "2", "--train.max_steps"]
    assert [done.returncode for done in train(*words, "3", processes=2)] == [0, 0]
    (kept,) = train(*words, "4")
    assert kept.returncode == 0, kept.stderr
    assert "cpu with 1 thread, " in kept.stdout
    assert "round" not in kept.stdout + kept.stderr
    (changed,) = train(*words, "5", "--train.threads", "2")
    assert changed.returncode == 0, changed.stderr
    says = "the 4 steps done were computed with 1 thread in each process, and it continues with 2, which rounds"
    assert f"{says} differently; --train.threads 1 keeps the bits" in changed.stdout + changed.stderr


@pytest.mark.usefixtures("own_threads")
def test_a_small_network_takes_few_threads(tiny: Path) -> None:
    config = recipe.load(str(tiny), ["--train.threads", "0", "--train.batch_size", "10"])
    ranks = engine(config).ranks
    torch.set_num_threads(64)
    settle_threads(build_setup(config, ranks), ranks, None)
    assert torch.get_num_threads() < 8
