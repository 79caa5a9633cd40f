"""Two processes against one, each with one thread: the time of a training step of the same global batch.

    python benchmarks/two_processes.py [--data shards/cifar10] [--recipe speedrun-94] [--batch N] [--turns 3]

Both take the product's complete step, which adds up the gradients over gloo. They take turns, step by step, in
processes of their own that wait while the other computes. Nothing is evaluated. The first step of each, which requests
memory and builds the kernels, does not count.

Two jobs of one process, each with half the batch, that know nothing of each other show what the machine allows: its
cores share memory and caches. What they are faster than the two processes is the price of adding up the gradients.
"""

from __future__ import annotations

import argparse

from comparison import record, take_turns
from workers import Workers

from cifar_dist import recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shards/cifar10")
    parser.add_argument("--recipe", default="speedrun-94")
    parser.add_argument("--batch", type=int, default=0, help="images in a step; 0: those of the recipe")
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    batch = asked.batch or recipe.load(asked.recipe).train.batch_size
    words = ["recipe.py", asked.recipe, "--data.path", asked.data, "--train.threads", "1", "--train.batch_size"]
    images = f", {asked.batch} images" if asked.batch else ""
    what = f"a training step of {asked.recipe} on two processes of one thread{images}"
    with Workers([*words, str(batch)], processes=2) as two:
        with Workers([*words, str(batch)]) as one:
            faster = take_turns(what, "one process of one thread", "s", two.step, one.step, asked.turns)
        with Workers([*words, str(batch // 2)], processes=2, alone=True) as jobs:
            possible = take_turns(what, "two jobs of half the batch", "s", two.step, jobs.step, asked.turns)
    record(__file__, [faster, possible])


if __name__ == "__main__":
    main()
