"""Runs that change their engine midway: ``python resume_on_ranks.py RECIPE RUNS``; test_zero2.py reads their folders.

For each optimizer: an uninterrupted run of DDP and one of ZeRO-2, and from the middle of them on, continuations by
the other and by the same. One interpreter imports DeepSpeed once for all of them.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import forked_ranks

from cifar_dist.cli import run

ENGINES = {
    "ddp": {"ACCELERATE_USE_DEEPSPEED": "false"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
}
OPTIMIZERS = {"sgd": [], "adamw": ["--optim.name", "adamw", "--optim.lr", "0.003"]}
CONTINUED = [("zero2", "zero2"), ("zero2", "ddp"), ("ddp", "zero2")]
MIDDLE = 15
SETTINGS = ["--train.epochs", "3", "--checkpoint.every_steps", str(MIDDLE), "--checkpoint.keep", "9"]


def train(engine: str, recipe: str, name: str, optimizer: str) -> None:
    """Train on two processes, or go on training."""
    os.environ.update(ENGINES[engine])
    words = ["train", recipe, "--run.name", name, *SETTINGS, *OPTIMIZERS[optimizer]]

    def work() -> None:
        assert run(words) == 0

    forked_ranks.run(2, work)


def cut(source: Path, target: Path) -> None:
    """A copy of a finished run as it was after the step MIDDLE."""
    shutil.copytree(source, target, symlinks=True)
    for checkpoint in (target / "checkpoints").iterdir():
        if checkpoint.is_symlink():
            checkpoint.unlink()
        elif checkpoint.name > f"step-{MIDDLE:08d}":
            shutil.rmtree(checkpoint)
    shutil.rmtree(target / "final")
    shutil.rmtree(target / "evaluations")


def main(recipe: str, runs: Path) -> None:
    """Train them all."""
    # Before the ranks are forked.
    import deepspeed  # noqa: F401

    import cifar_dist.trainer  # noqa: F401

    for optimizer in OPTIMIZERS:
        for engine in ENGINES:
            train(engine, recipe, f"{optimizer}-{engine}", optimizer)
        for first, second in CONTINUED:
            name = f"{optimizer}-{first}-{second}"
            cut(runs / f"{optimizer}-{first}", runs / name)
            train(second, recipe, name, optimizer)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
