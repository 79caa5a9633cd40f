"""Where the time goes: phases of each epoch, the gradient norm, memory, the device's arithmetic, and a profile."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.clock import Clock
from support.running import TRAIN, metrics, spawn
from torch import nn

from cifar_dist import cli, recipe
from cifar_dist.distributed.start import start_engine
from cifar_dist.errors import UserError
from cifar_dist.tracking.metrics import Record
from cifar_dist.training import phases, usage_meter
from cifar_dist.training.device_speed import blueprint_of, measure_ceiling, operations_per_image
from cifar_dist.training.phases import PhaseClock
from cifar_dist.training.setup import build_setup
from cifar_dist.training.usage_meter import UsageMeter

WORDS = ("--optim.clip_norm", "1", "--train.threads", "1", "--eval.every", "2", "--tracking.every", "1")


TICKING = """
import itertools, sys
from types import SimpleNamespace
from cifar_dist.cli import run
from cifar_dist.process_exit import exit_with
from cifar_dist.training import measurements, phases
looks = itertools.count()
phases.time = measurements.time = SimpleNamespace(perf_counter=lambda: next(looks) / 1000)
exit_with(lambda: run(["train", *sys.argv[1:]]))
"""
"""Trains by a clock of which each look takes a millisecond: a phase that a busy machine extends hides no other."""


@pytest.fixture(scope="module")
def pair(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a profiled run of two epochs on two processes, whose first epoch is not evaluated, and its output."""
    folder = tmp_path_factory.mktemp("pair")
    recipe = folder / "pair.toml"
    recipe.write_text(
        f'[run]\ndir = "{folder}"\n[data]\npath = "{digits}"\n[augment]\ntransforms = [{{ name = "crop", pad = 2 }}]\n'
        '[model]\nname = "tiny-cnn"\n[train]\nepochs = 2\nbatch_size = 20\n'
    )
    first, _ = spawn(["-c", TICKING, str(recipe), *WORDS, "--train.profile", "2"], 2)
    assert first.returncode == 0, first.stderr
    assert "profiler_start" not in first.stderr, "of torch's profiler"
    return folder / "pair", first.stdout


def test_each_epoch_records_where_its_time_went(pair: tuple[Path, str]) -> None:
    run, printed = pair
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    with_usage = [record for record in records if "usage" in record]
    assert [(record["epoch"], record["split"]) for record in with_usage] == [(0, "train"), (1, "val"), (1, "test")]
    first, second, last = (record["usage"] for record in with_usage)
    trained = {"data", "copy", "augmentation", "forward", "backward", "communication", "optimizer", "rest"}
    assert trained <= first["shares"].keys()
    assert trained | {"evaluation", "checkpoint"} <= second["shares"].keys()
    assert "evaluation" in last["shares"]
    for usage in (first, second, last):
        assert sum(usage["shares"].values()) == pytest.approx(1, abs=0.001)
        assert usage["peak_bytes"] > 50e6
    for epoch, usage in enumerate((first, second)):
        steps = [record["seconds"] for record in metrics(run) if record["epoch"] == epoch]
        assert usage["seconds"] > sum(steps[1:])
    line = next(line for line in printed.splitlines() if line.startswith("time: "))
    assert "backward" in line
    assert "of memory at most" in line


def test_a_final_evaluation_that_has_no_record_counts_too(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ``eval.split`` val, which each epoch records with other weights or views."""
    looks = itertools.count()
    monkeypatch.setattr(phases, "time", SimpleNamespace(perf_counter=lambda: next(looks) / 1000))  # as above
    assert cli.run(["train", str(tiny), "--train.max_steps", "2", "--eval.split", "val", "--eval.tta", "mirror"]) == 0
    log = (tmp_path / "runs" / "tiny" / "training.log").read_text()
    (line,) = (line for line in log.splitlines() if "time of the evaluation on val: " in line)
    assert "evaluation " in line.partition("time of the evaluation on val: ")[2]


def test_the_gradient_norm_is_recorded_where_gradients_are_clipped(pair: tuple[Path, str]) -> None:
    norms = [record["grad_norm"] for record in metrics(pair[0])]
    assert all(0 < norm < 100 for norm in norms)
    assert len(set(norms)) == len(norms)


def test_a_profile_shows_the_phases_and_changes_no_weight(pair: tuple[Path, str]) -> None:
    run, printed = pair
    (trace,) = (run / "profile").iterdir()
    assert trace.name == "steps-4-to-5.json.gz"
    assert f"profile of steps 4 to 5: {trace}" in printed
    names = [event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert [names.count(phase) for phase in ("forward", "backward", "optimizer")] == [2, 2, 2]
    assert "aten::convolution_backward" in names
    plain, _ = spawn([TRAIN, str(run.parent / "pair.toml"), *WORDS, "--run.name", "plain"], 2)
    assert plain.returncode == 0, plain.stderr
    weights = [path.joinpath("final/model.safetensors").read_bytes() for path in (run, run.with_name("plain"))]
    assert weights[0] == weights[1]


def test_a_profile_longer_than_the_run_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"train\.profile 27 is more than the 26 steps of the run; use at most 26"):
        cli.run(["train", str(tiny), "--train.profile", "27"])
    with pytest.raises(UserError, match=r"train\.profile -1 must not be negative"):
        cli.run(["train", str(tiny), "--train.profile=-1"])


def test_phases_do_not_overlap(clock: Clock) -> None:
    phases = PhaseClock(torch.device("cpu"))
    clock.now += 1
    with phases.during("forward"):
        clock.now += 2
        with phases.during("copy"):
            clock.now += 4
        clock.now += 8
    phases.begin("data")
    clock.now += 16
    assert phases.take() == {"rest": 1, "forward": 10, "copy": 4, "data": 16}
    assert phases.take() == {"data": 0}


def test_a_ceiling_that_was_measured_beside_other_programs_is_corrected(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which no test can bring about at will: the measurements are given."""
    config = recipe.load(str(tiny))
    found = iter([1e13, 4e13, 2e13])
    monkeypatch.setattr(usage_meter, "measure_ceiling", lambda *_: next(found))
    with start_engine(config) as engine:
        meter = UsageMeter(build_setup(config, engine.ranks), engine, PhaseClock(engine.ranks.device))
        used = list[float]()
        for seconds in (100.0, 100.0, 100.0):
            meter.add([Record(1, 0, "train", 1.0, 0.5, samples=int(1e6 * seconds), seconds=seconds)])
            utilisation = meter.take().utilisation
            assert utilisation is not None
            used.append(utilisation)
    assert used[0] == pytest.approx(4 * used[1], rel=0.01)
    assert used[1] == used[2]


def test_a_network_that_is_faster_than_the_products_is_the_ceiling_itself(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe.load(str(tiny))
    monkeypatch.setattr(usage_meter, "measure_ceiling", lambda *_: 1.0)
    with start_engine(config) as engine:
        meter = UsageMeter(build_setup(config, engine.ranks), engine, PhaseClock(engine.ranks.device))
        used = []
        for samples in (2000, 1000):
            meter.add([Record(1, 0, "train", 1.0, 0.5, samples=samples, seconds=10.0)])
            used.append(meter.take().utilisation)
    assert used == [1.0, 0.5]


def test_arithmetic_is_counted_without_being_executed() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 10, bias=False))
    # Forward and the gradient of the weights: images need none.
    assert operations_per_image(blueprint_of(linear), (4, 4, 3)) == 2 * 2 * 48 * 10
    opaque = nn.Linear(48, 10)
    assert operations_per_image(blueprint_of(opaque), (4, 4, 3)) is None, "it fails, so nothing is known"


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_what_a_device_reaches_is_measured_without_the_random_numbers_of_the_training(dtype: torch.dtype) -> None:
    before = torch.get_rng_state()
    assert measure_ceiling(torch.device("cpu"), dtype) > 1e6
    assert torch.equal(torch.get_rng_state(), before)
