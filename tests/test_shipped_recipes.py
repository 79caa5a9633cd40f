"""Every shipped recipe: two steps on digits, an evaluation, and the second step repeated on two processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.ops  # noqa: F401 - half of the models want it, and every fork would load it for itself
from support import forked_ranks
from support.running import metrics

from cifar_dist import models, recipe
from cifar_dist.config.schedule import StepConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.pack import pack
from cifar_dist.data.read import ShardReader
from cifar_dist.distributed.start import start_engine
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.training.trainer import Trainer

SIDE = 16  # what the deepest of them still takes, and a quarter of the work
PER_SPLIT = {"train": 12, "val": 4, "test": 4}


@pytest.fixture(scope="module")
def few(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handful of digits, packed."""
    folder = tmp_path_factory.mktemp("few")
    manifest = Manifest.load(digits)
    arrays = {}
    for split, count in PER_SPLIT.items():
        arrays[f"x_{split}"] = ShardReader(manifest, split).all().numpy()[:count]
        arrays[f"y_{split}"] = np.arange(count) % 10
    np.savez(folder / "few.npz", **arrays)
    pack(str(folder / "few.npz"), folder / "few", size=SIDE, show=False)
    return folder / "few"


def small(name: str, data: Path, runs: Path) -> list[str]:
    """The overrides that shorten any recipe to two steps, or three."""
    words = ["--run.dir", str(runs), "--data.path", str(data), "--train.epochs", "1", "--train.batch_size", "6"]
    words += [
        "--checkpoint.every_steps",
        "1",
        "--checkpoint.keep",
        "3",
        "--train.threads",
        "1",
    ]
    config = recipe.load(name)
    if isinstance(config.schedule, StepConfig):
        words += ["--schedule.milestones", "[0.5]"]
    if config.model.image_size:
        words += ["--model.image_size", "32"]
    if config.model.pretrained:
        weights = runs / "weights.pth"
        published = models.build(config.model.name, classes=1000, options=config.model.options)
        torch.save(published.state_dict(), weights)
        words += ["--model.pretrained", str(weights)]
    return words


def start(name: str, words: list[str]) -> None:
    config = recipe.load(name, words)
    with StopSignals() as signals, start_engine(config) as engine:
        assert Trainer(config, engine, signals).run() == 0


@pytest.mark.parametrize("name", recipe.shipped())
def test_a_recipe_trains_evaluates_and_resumes_on_one_process_and_two(few: Path, tmp_path: Path, name: str) -> None:
    words = small(name, few, tmp_path)
    config = recipe.load(name)
    run = tmp_path / config.run.name
    # A recipe that holds nothing out trains on those of val too, in a third step.
    steps = [1, 2] if config.data.hold_out else [1, 2, 3]
    forked_ranks.run(1, lambda: start(name, words))
    alone = metrics(run)
    assert [record["step"] for record in alone] == steps
    assert sum(record["samples"] for record in alone) == PER_SPLIT["train"] + (len(steps) - 2) * PER_SPLIT["val"]
    assert all(np.isfinite(record["loss"]) for record in alone)
    assert len(metrics(run, "val")) == config.data.hold_out

    # Back to the first step: two processes repeat the others and finish the run again.
    saved = [run / "checkpoints" / f"step-{step:08d}" for step in steps[1:]]
    for path in (*saved, run / "final", run / "evaluations"):
        shutil.rmtree(path)
    forked_ranks.run(2, lambda: start(name, words))
    together = metrics(run)
    assert [record["step"] for record in together] == steps
    (summary,) = (run / "evaluations").glob("*/summary.json")
    facts = json.loads(summary.read_text())
    assert facts["samples"] == PER_SPLIT["test"]
    assert facts["processes"] == 2
