"""Two processes against one, each with one thread: images per second of the same global batch.

    python benchmarks/two_processes.py [--data shards/cifar10] [--recipe speedrun-94] [--steps 4] [--turns 3]

Each turn is a run of so many steps, started with ``cifar-dist launch cpu``. The first step of a run, which requests
memory and builds the kernels, does not count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from comparison import record, take_turns


def rate(processes: int, recipe: str, data: str, steps: int) -> float:
    """Return images per second of all steps but the first, by the run's own metrics."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cifar_dist", "launch", "cpu", f"--num_processes={processes}", recipe]
        command += ["--data.path", data, "--run.dir", folder, "--run.name", "timed", "--train.threads", "1"]
        command += ["--train.max_steps", str(1 + steps), "--tracking.every", "1", "--eval.every", "1000000"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"two_processes: the run failed: {done.stderr.strip().splitlines()[-1]}")
        lines = Path(folder, "timed", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [one for one in map(json.loads, lines) if one["split"] == "train"][1:]
    return sum(one["samples"] for one in records) / sum(one["seconds"] for one in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shards/cifar10")
    parser.add_argument("--recipe", default="speedrun-94")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    words = (asked.recipe, asked.data, asked.steps)
    what, peer = f"{asked.recipe} on two processes of one thread", "one process of one thread"
    record(
        __file__, [take_turns(what, peer, "images/s", lambda: rate(2, *words), lambda: rate(1, *words), asked.turns)]
    )


if __name__ == "__main__":
    main()
