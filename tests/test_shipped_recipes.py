"""Every shipped recipe trains a step on digits and is evaluated; one of each network continues on two processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.ops  # noqa: F401 - half of the models want it, and every fork would load it for itself
from numpy.typing import ArrayLike
from support import forked_ranks
from support.dataset_builders import write_npz
from support.running import metrics

from cifar_dist import recipe
from cifar_dist.config import OptionValue
from cifar_dist.config.schedule import StepConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.pack import pack
from cifar_dist.data.read import ShardReader
from cifar_dist.distributed.start import start_engine
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.evaluation.speed import make_forms, time_forms
from cifar_dist.models import build, build_for
from cifar_dist.training.trainer import Trainer

SIDE = 16  # what the deepest of them still takes, and a quarter of the work
PER_SPLIT = {"train": 12, "val": 4, "test": 4}
SMALLER: dict[str, dict[str, OptionValue]] = {
    "custom-resnet": {"pairs": [1, 0, 0]},
    "resnet18": {"blocks": [1, 1, 1, 1]},
    "resnet34": {"blocks": [1, 1, 1, 1]},
    "speed-net-96": {"widths": [32, 96, 128]},
    "wrn-28-10": {"depth": 10, "width": 1},
}
"""Options of networks whose checkpoints would take tens of megabytes or more. tests/models builds them as they are."""


@pytest.fixture(scope="module")
def few(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handful of digits, packed."""
    folder = tmp_path_factory.mktemp("few")
    manifest = Manifest.load(digits)
    arrays: dict[str, ArrayLike] = {}
    for split, count in PER_SPLIT.items():
        arrays[f"x_{split}"] = ShardReader(manifest, split).all().numpy()[:count]
        arrays[f"y_{split}"] = np.arange(count) % 10
    pack(write_npz(folder / "few.npz", arrays), folder / "few", size=SIDE, show=False)
    return folder / "few"


def small(name: str, data: Path, runs: Path) -> list[str]:
    """The overrides that shorten any recipe to an epoch of two steps, or three, of a network that is not large."""
    words = ["--run.dir", str(runs), "--data.path", str(data), "--train.epochs", "1", "--train.batch_size", "6"]
    words += ["--checkpoint.every_steps", "10", "--train.threads", "1"]
    config = recipe.load(name)
    smaller = SMALLER.get(config.model.name, {})
    for option, value in smaller.items():
        words += [f"--model.options.{option}", json.dumps(value)]
    if isinstance(config.schedule, StepConfig):
        words += ["--schedule.milestones", "[0.5]"]
    if config.model.image_size:
        words += ["--model.image_size", "32"]
    if config.model.pretrained:
        weights = runs / "weights.pth"
        published = build(config.model.name, classes=1000, options={**config.model.options, **smaller})
        torch.save(published.state_dict(), weights)
        words += ["--model.pretrained", str(weights)]
    return words


def start(name: str, words: list[str]) -> None:
    config = recipe.load(name, words)
    with StopSignals() as signals, start_engine(config, signals) as engine:
        assert Trainer(config, engine).run() == 0


def accuracies(run: Path) -> list[tuple[int, int]]:
    """(images, processes) of each evaluation."""
    summaries = sorted((run / "evaluations").glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
    found = [json.loads(path.read_text()) for path in summaries]
    return [(facts["samples"], facts["processes"]) for facts in found]


def one_of_each_network() -> set[str]:
    """One recipe of each network, to continue on two processes. The others differ only in values of settings."""
    models = {name: recipe.load(name).model for name in recipe.shipped()}
    return set({(model.name, model.freeze): name for name, model in models.items()}.values())


@pytest.mark.parametrize("name", recipe.shipped())
def test_a_recipe_trains_evaluates_and_continues_on_two_processes(few: Path, tmp_path: Path, name: str) -> None:
    words = small(name, few, tmp_path)
    config = recipe.load(name)
    run = tmp_path / config.run.name
    forked_ranks.run(1, lambda: start(name, [*words, "--train.max_steps", "1"]))
    assert [record["step"] for record in metrics(run)] == [1]
    assert accuracies(run) == [(PER_SPLIT["test"], 1)]

    if name not in one_of_each_network():
        return
    forked_ranks.run(2, lambda: start(name, words))
    # A recipe that holds nothing out trains on the images of val too, in a third step.
    steps, images = ([1, 2], 12) if config.data.hold_out else ([1, 2, 3], 16)
    records = metrics(run)
    assert [record["step"] for record in records] == steps
    assert sum(record["samples"] for record in records) == images
    assert all(np.isfinite(record["loss"]) for record in records)
    assert len(metrics(run, "val")) == config.data.hold_out
    assert accuracies(run)[-1] == (PER_SPLIT["test"], 2)


@pytest.mark.parametrize("name", sorted(one_of_each_network()))
def test_the_network_of_a_recipe_can_be_traced_and_scripted(name: str) -> None:
    """As ``cifar-dist speed`` times it, but for ``speed-net``. Those with ``model.image_size`` are among them."""
    model = recipe.load(name).model
    model = replace(model, options={**model.options, **SMALLER.get(model.name, {})}, image_size=model.image_size and 48)
    torch.manual_seed(0)
    network = build_for(model, shape=(SIDE, SIDE, 3), classes=10).eval()
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    forms, failures = make_forms(network, images)
    assert set(failures) == ({"scripted"} if model.name.startswith("speed-net") else set())
    assert all(timing.difference < 1e-4 for timing in time_forms(forms, images, passes=1).values())
