"""A worker that trains a recipe with the product's step: data, augmentation, network, update, measurements.

    python benchmarks/workers/recipe.py RECIPE [--section.field VALUE ...]

It evaluates nothing and writes nothing.
"""

from __future__ import annotations

import sys

import torch

from cifar_dist import recipe
from cifar_dist.distributed.start import start_engine
from cifar_dist.process_exit import exit_with
from cifar_dist.training.learner import Learner
from cifar_dist.training.setup import build_setup
from workers import Requests


def main() -> int:
    requests = Requests()
    config = recipe.load(sys.argv[1], sys.argv[2:])
    with start_engine(config) as engine:
        device = engine.ranks.device
        setup = build_setup(config, engine.ranks)
        last = config.train.epochs * setup.steps_per_epoch
        training = Learner(setup, engine).steps(0, last, setup.learning_rate)
        for _ in requests:
            with requests.timed():
                next(training)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
    return 0


if __name__ == "__main__":
    exit_with(main)
