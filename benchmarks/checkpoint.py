"""How long saving a checkpoint blocks training, as a ratio to a save that training waits for.

::

    python benchmarks/checkpoint.py [--parameters 100] [--saves 7] [--device cuda] [--folder DIR]

A network of so many million random float32 parameters, trained with momentum by SGD, goes through the saver of a run:
in each turn once with ``checkpoint.background`` off and once on. Between two saves the script waits for the write, as
a run with enough steps between its checkpoints does. One CPU thread copies.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from comparison import Comparison, record
from torch import nn

from cifar_dist.checkpoint import NEW_RUN, Tensors
from cifar_dist.config import CheckpointConfig
from cifar_dist.cpu.malloc import keep_freed_memory
from cifar_dist.distributed.host_copies import Deal, copy_to_host
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.tracking.tracker import SilentTracker
from cifar_dist.training.saving import CheckpointSaver

_WIDTH = 1536  # as many parameters as a convolution of 3x3 from 512 channels to 512


class Network:
    """Random weights and momentum, and the copy of both that a checkpoint is written from."""

    def __init__(self, millions: int, device: torch.device) -> None:
        count = round(millions * 1_000_000 / _WIDTH**2)
        self.module = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(count))).to(device)
        self.momentum = {name: torch.randn_like(value) for name, value in self.module.named_parameters()}

    def state(self, deal: Deal) -> Tensors:
        optimizer = ((f"momentum_buffer/{name}", value) for name, value in self.momentum.items())
        return Tensors(copy_to_host(self.module.state_dict().items(), deal), None, copy_to_host(optimizer, deal))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100, help="in millions")
    parser.add_argument("--saves", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: that of temporary files)")
    asked = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    network = Network(asked.parameters, asked.device)
    ranks = Ranks(0, 1, asked.device, first_of_node=True)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        savers = {
            background: CheckpointSaver(
                Path(folder, str(background)),
                CheckpointConfig(keep=1, background=background),
                ranks,
                SilentTracker(),
                NEW_RUN,
                retry=1,
                longest_retry=1,
                last_step=asked.saves + 1,
            )
            for background in seconds
        }
        for step in range(1, asked.saves + 2):
            for background, saver in savers.items():
                begin = time.perf_counter()
                saver.save(network.state, replace(NEW_RUN, step=step), must=False)
                blocked = time.perf_counter() - begin
                saver.wait(step)
                if step > 1:  # the first save requests the memory that the others use again
                    seconds[background].append(blocked)
    what = f"a checkpoint of {asked.parameters} M parameters with momentum, {asked.device}"
    record(__file__, [Comparison(what, "saved in the foreground", "s", seconds[True], seconds[False])])


if __name__ == "__main__":
    main()
