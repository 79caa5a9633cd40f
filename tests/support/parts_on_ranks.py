"""Runs of six fixed parts: ``python parts_on_ranks.py RECIPE RUNS PRECISION``; test_fixed_parts.py reads the folders.

One run on each number of processes of PROCESSES, then a copy of the last one as it was in the middle of an epoch,
resumed on one process. The network has batch statistics and dropout, the samples are mixed, and the optimizer computes
the gradient twice: everything that depends on how a batch is split.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cifar_dist import recipe
from cifar_dist.cpu import conv2d, instructions
from cifar_dist.distributed.start import start_engine
from cifar_dist.training.trainer import Trainer
from support import forked_ranks
from support.run_folders import cut

PARTS = 6
PROCESSES = [1, 2, 4]
"""Four do not divide six: two of them have one part, and the sums of pairs cross processes."""
MIDDLE = 4
SETTINGS = [
    *("--train.parts", str(PARTS), "--train.batch_size", "24", "--train.threads", "1", "--train.epochs", "1"),
    *("--train.max_steps", "7"),
    *("--model.name", "wrn-16-8", "--model.options.depth", "10", "--model.options.width", "1"),
    *("--model.options.dropout", "0.3", "--optim.sam_rho", "0.05", "--optim.clip_norm", "1", "--average.name", "ema"),
    *("--augment.transforms", '[{ name = "crop" }, { name = "cutmix" }]'),
    *("--checkpoint.every_steps", str(MIDDLE), "--checkpoint.keep", "9"),
]


def train(processes: int, path: str, name: str, precision: str) -> None:
    """Train, or resume training."""
    config = recipe.load(path, ["--run.name", name, *SETTINGS, "--train.precision", precision])

    def work() -> None:
        with start_engine(config) as engine:
            assert Trainer(config, engine).run() == 0

    forked_ranks.run(processes, work)


def main(path: str, runs: Path, precision: str) -> None:
    """Train them all. The small images here would be faster in bfloat16, and with AMX all are."""
    conv2d._gains_in_int8 = lambda *_: True
    instructions.is_int8_fast = instructions.has_int8_products
    for processes in PROCESSES:
        train(processes, path, f"on-{processes}", precision)
    cut(runs / f"on-{PROCESSES[-1]}", runs / "resumed", MIDDLE)
    train(1, path, "resumed", precision)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
