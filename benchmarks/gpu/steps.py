"""Where the time of a recipe's steps goes, and its peak memory.

    python benchmarks/gpu/steps.py RECIPE STEPS [--section.field VALUE ...]

Three times, each of work that is queued without waiting, up to the device's last kernel: taking a batch from the
data, augmenting it, and a complete training step. A fifth as many run before each, to compile and to warm up, and on a
GPU five seconds of steps before all, because the first seconds of a process are slower there.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable

import torch

from cifar_dist import recipe
from cifar_dist.distributed.device_time import time_on
from cifar_dist.distributed.start import start_engine
from cifar_dist.process_exit import exit_with
from cifar_dist.training.learner import Learner
from cifar_dist.training.setup import build_setup

_SETTLE = 5.0  # seconds


def milliseconds(work: Callable[[], object], count: int, device: torch.device) -> float:
    """Milliseconds of one call, the mean of ``count``."""
    time_on(device, work, max(1, count // 5))
    return 1000 * time_on(device, work, count)


def main() -> int:
    name, count, *settings = sys.argv[1:]
    config, steps = recipe.load(name, settings), int(count)
    with start_engine(config) as engine:
        device = engine.ranks.device
        setup = build_setup(config, engine.ranks)
        learner = Learner(setup, engine)
        steps_of_all_epochs = (step for epoch in itertools.count() for step in setup.batches.epoch(epoch))
        batch = next(steps_of_all_epochs)[0]
        training = learner.steps(0, sys.maxsize, lambda _: 0.0)

        def train() -> None:
            next(training)
            learner.clock.read()  # as the trainer does now and then, or its events pile up

        train()  # compiles, which takes memory of its own
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            settled = time.perf_counter() + _SETTLE
            while time.perf_counter() < settled:
                train()
                torch.cuda.synchronize(device)
        data = milliseconds(lambda: next(steps_of_all_epochs), steps, device)
        augment = milliseconds(lambda: setup.mix(batch, 0), steps, device)
        step = milliseconds(train, steps, device)
        rate = 1000 * config.train.batch_size / step
        memory = f", {torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB" if device.type == "cuda" else ""
        print(
            f"{name}: a step of {config.train.batch_size} takes {step:.2f} ms ({rate:,.0f} images/s), of which data "
            f"{data:.2f} ms, augmentation {augment:.2f} ms{memory}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    exit_with(main)
