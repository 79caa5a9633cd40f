"""Train a recipe several times in one process and print the time of each run: the first one warms up.

    python benchmarks/gpu/speedrun.py RECIPE REPEATS FOLDER [--section.field VALUE ...]

The time is that of all training steps and of the final evaluation with its views, from metrics.jsonl, as airbench's
scripts time themselves. It leaves out opening the data, the whitening of the first layer and the report.

Each run has a network of its own, at other addresses, for which CUDA graphs are recorded again. airbench's scripts
train one network several times, and record in their warm-up. So the time of the first steps is also printed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from cifar_dist import cli
from cifar_dist.formatting import percent
from cifar_dist.process_exit import exit_with

RECORDING = 2  # steps in which torch warms up and records CUDA graphs


def measured(run: Path) -> tuple[float, float, float]:
    """Return the seconds of a finished run, those of its first steps, and its accuracy, a fraction."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    counted = [record for record in records if record["split"] != "val"]
    seconds = [record["seconds"] for record in counted]
    return sum(seconds), sum(seconds[:RECORDING]), counted[-1]["accuracy"]


def main() -> int:
    recipe, repeats, folder, *settings = sys.argv[1:]
    found: list[tuple[float, float, float]] = []
    for number in range(int(repeats) + 1):
        begin = time.perf_counter()
        where = ["--run.dir", folder, "--run.name", f"{recipe}.{number}", "--run.seed", str(number)]
        if code := cli.run(["train", recipe, *where, *settings]):
            return code
        seconds, first, accuracy = measured(Path(folder, f"{recipe}.{number}"))
        whole = time.perf_counter() - begin
        kind = "run" if number else "warm-up"
        print(f"{kind} {number}: {seconds:.3f} s, {whole:.1f} s with everything, {percent(accuracy)}", flush=True)
        if number:
            found.append((seconds, first, accuracy))
    means = [statistics.fmean(column) for column in zip(*found, strict=True)]
    recorded = f"{means[1]:.3f} s in the first {RECORDING} steps"
    print(f"mean of {len(found)}: {means[0]:.3f} s ({recorded}), {percent(means[2])}")
    return 0


if __name__ == "__main__":
    exit_with(main)
