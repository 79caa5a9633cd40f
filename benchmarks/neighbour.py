"""Two training runs on the cores of one: our short wait of OpenMP's threads against torch as it comes.

    python benchmarks/neighbour.py

The network of `demo` trains on batches of 64 with a thread for each core, alone, and two runs of it at a time: as two
users of a node have it, or a sweep with --jobs 2. Each run is a process in a session of its own, so that the system
shares the cores fairly among them. The peer's differ in nothing but the environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

from cifar_dist.launch.parent_death import signal_when_this_ends

SECONDS = 4.0
BATCH = 64


def train() -> None:
    """Print images per second."""
    import torch
    import torch.nn.functional as F

    from cifar_dist.models import build

    torch.set_num_threads(os.cpu_count() or 1)
    model = build("tiny-resnet", classes=10, options={}).to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, 8, 8).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        F.cross_entropy(model(images), labels).backward()
        steps += 1
    print(BATCH * steps / (time.perf_counter() - begin))


def measured(mode: str, runs: int) -> float:
    """Images per second of all runs together."""
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    words = [sys.executable, __file__, mode]
    bound = signal_when_this_ends(signal.SIGKILL)
    started = [
        subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=bound)
        for _ in range(runs)
    ]
    return sum(float(process.communicate()[0]) for process in started)


def main() -> None:
    from comparison import record, take_turns

    comparisons = [
        take_turns(
            f"training demo with a short wait of OpenMP's threads, {what}",
            "torch as it comes",
            "images/s",
            partial(measured, "ours", runs),
            partial(measured, "peer", runs),
            turns=3,
        )
        for what, runs in (("one run", 1), ("two runs at a time", 2))
    ]
    record(__file__, comparisons)


if __name__ == "__main__":
    if sys.argv[1:] == ["ours"]:
        from cifar_dist.cpu.openmp import shorten_openmp_spin

        shorten_openmp_spin()
    if sys.argv[1:]:
        train()
    else:
        main()
