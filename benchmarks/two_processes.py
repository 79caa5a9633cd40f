"""Two processes against one, each with one thread: the time of a training step of the same global batch.

    python benchmarks/two_processes.py [--data shards/cifar10] [--recipe speedrun-94] [--batch N] [--turns 3]

Both take the product's complete step, which adds up the gradients over gloo. They take turns, step by step, in
processes of their own that wait while the other computes. Nothing is evaluated. The first step of each, which requests
memory and builds the kernels, does not count.
"""

from __future__ import annotations

import argparse

from comparison import record, take_turns
from workers import Workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shards/cifar10")
    parser.add_argument("--recipe", default="speedrun-94")
    parser.add_argument("--batch", type=int, default=0, help="images in a step; 0: those of the recipe")
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    words = ["recipe.py", asked.recipe, "--data.path", asked.data, "--train.threads", "1"]
    batch = ["--train.batch_size", str(asked.batch)] if asked.batch else []
    images = f", {asked.batch} images" if asked.batch else ""
    with Workers([*words, *batch], processes=2) as two, Workers([*words, *batch]) as one:
        what = f"a training step of {asked.recipe} on two processes of one thread{images}"
        comparison = take_turns(what, "one process of one thread", "s", two.step, one.step, asked.turns)
    record(__file__, [comparison])


if __name__ == "__main__":
    main()
