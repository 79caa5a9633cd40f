"""Training on a CPU with freed memory kept, against the C library as it comes.

    python benchmarks/memory.py

The network of `speedrun-94` trains on batches of 250 on one core. What is compared is CPU time, the system's included,
which a neighbour disturbs less than the clock on the wall; the two take turns.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

from cifar_dist.launch.parent_death import signal_when_this_ends

STEPS, BATCH, TURNS = 4, 250, 3


def train() -> None:
    """Print the CPU seconds of a step."""
    import torch
    import torch.nn.functional as F

    from cifar_dist.models import build

    torch.set_num_threads(1)
    model = build("speed-net", classes=10, options={}).to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    for step in range(1 + STEPS):
        if step == 1:
            before = resource.getrusage(resource.RUSAGE_SELF)
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(seconds / STEPS)


def measured(mode: str) -> float:
    """CPU seconds of a step, in a process of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    words, bound = [sys.executable, __file__, mode], signal_when_this_ends(signal.SIGKILL)
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True, preexec_fn=bound)
    return float(done.stdout)


def main() -> None:
    from comparison import record, take_turns

    what, peer = f"a step of speed-net with freed memory kept, {BATCH} images, CPU time", "the C library as it comes"
    record(__file__, [take_turns(what, peer, "s", lambda: measured("ours"), lambda: measured("peer"), TURNS)])


if __name__ == "__main__":
    if sys.argv[1:] == ["ours"]:
        from cifar_dist.cpu.malloc import keep_freed_memory

        assert keep_freed_memory()
    if sys.argv[1:]:
        train()
    else:
        main()
