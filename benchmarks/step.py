"""What the trainer costs: its complete training step against a bare loop of the same network and optimizer.

    python benchmarks/step.py [--data shards/cifar10] [--turns 5] [--precision no|bf16] [RECIPE ...]

Ours takes a batch from the data, augments it, computes the targets, trains in the precision of the recipe or of
--precision, and measures losses and predictions. The bare loop is what one would write first: forward pass,
cross-entropy, backward pass and update, always on the same batch, which is augmented already. It trains in the same
precision, but has no 8-bit convolutions. So a ratio of 1 means that data, augmentation and measurements cost nothing.
The two take turns, step by step, with two copies of one network in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from comparison import Comparison, record, take_turns

from cifar_dist import recipe
from cifar_dist.distributed.device_time import time_on
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.start import start_engine
from cifar_dist.process_exit import exit_with
from cifar_dist.training.learner import Learner
from cifar_dist.training.setup import TrainingSetup, build_setup

RECIPES = ("speedrun-94", "resnet18", "custom-resnet", "se-resnet-randaugment")
PEER = "a bare loop"


def bare_step(setup: TrainingSetup, engine: Engine) -> Callable[[], object]:
    """Return a step of the bare loop, which trains the network of ``setup`` without the trainer."""
    model, optimizer, train = setup.module, setup.optimizer, setup.config.train
    device, lower = engine.ranks.device, engine.precision.autocast
    batch = next(setup.batches.epoch(0))[0]
    images, targets = setup.mix(batch, 0)

    def step() -> None:
        with torch.autocast(device.type, lower, enabled=lower is not None):
            logits = model(images)
        F.cross_entropy(logits.float(), targets, label_smoothing=train.label_smoothing).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(name: str, settings: list[str], turns: int) -> Comparison:
    config = recipe.load(name, settings)
    with start_engine(config) as engine:
        device = engine.ranks.device
        setup, bare = build_setup(config, engine.ranks), build_setup(config, engine.ranks)
        learner = Learner(setup, engine)
        bare.module.load_state_dict(setup.module.state_dict())
        if config.train.channels_last:
            bare.module.to(memory_format=torch.channels_last)
        bare.module.to(device).train()
        training = learner.steps(0, turns + 2, setup.learning_rate)
        theirs = bare_step(bare, engine)
        what = f"a training step of {name}, {config.train.batch_size} images, {engine.precision.label}"
        return take_turns(
            what,
            PEER,
            "s",
            lambda: time_on(device, lambda: next(training)),
            lambda: time_on(device, theirs),
            turns,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--data", default="shards/cifar10")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--precision", choices=("no", "bf16"), help="instead of the recipe's")
    asked = parser.parse_args()
    precision = ["--train.precision", asked.precision] if asked.precision else []
    settings = ["--data.path", asked.data, *precision]
    record(__file__, [compare(name, settings, asked.turns) for name in asked.recipes])
    return 0


if __name__ == "__main__":
    exit_with(main)
