"""A worker that saves a checkpoint, sharded by FSDP: python benchmarks/workers/saving.py MILLIONS FOLDER parts|all.

It answers with the bytes by which the resident memory of this process grows at most during the save.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from cifar_dist.checkpoint import NEW_RUN, Tensors
from cifar_dist.config import CheckpointConfig, Config
from cifar_dist.distributed.host_copies import Deal
from cifar_dist.distributed.start import start_engine
from cifar_dist.distributed.wrapped_model import WrappedModel
from cifar_dist.process_exit import exit_with
from cifar_dist.tracking.tracker import SilentTracker
from cifar_dist.training.checkpoint_writers import GatheringWriter, ShardingWriter
from cifar_dist.training.saving import CheckpointSaver
from workers import Requests

_WIDTH = 1536


def build(millions: int) -> nn.Module:
    """Build a network of so many million parameters."""
    torch.manual_seed(0)
    layers = round(millions * 1_000_000 / _WIDTH**2)
    return nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(layers)))


def train_a_step(model: WrappedModel) -> None:
    """After it, the optimizer has state."""
    model.begin_step(0.001)
    with model.accumulate():
        model.backward(model(torch.randn(2, _WIDTH)).square().mean())
    model.update()


def growth(saver: CheckpointSaver, model: WrappedModel) -> int:
    """Save; return the highest resident memory during it, less that before, in bytes."""

    def state(deal: Deal) -> Tensors:
        return Tensors(model.state(deal), None, model.optimizer_state(deal))

    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or the save takes memory that was freed before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    saver.save(state, replace(NEW_RUN, step=1), must=True)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """A number of bytes in /proc/self/status."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return 1024 * int(found[1])


def main() -> int:
    requests = Requests()
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "true"}
    millions, folder, kind = sys.argv[1:]
    module = build(int(millions))
    with start_engine(Config()) as engine:
        model = engine.prepare(module, torch.optim.AdamW(module.parameters()))
        train_a_step(model)
        writer = ShardingWriter if kind == "parts" else GatheringWriter
        config, tracker = CheckpointConfig(), SilentTracker()
        saver = CheckpointSaver(
            Path(folder), config, engine.ranks, tracker, NEW_RUN, writer=writer, retry=1, longest_retry=1, last_step=9
        )
        for _ in requests:
            requests.answer(growth(saver, model))
    return 0


if __name__ == "__main__":
    exit_with(main)
