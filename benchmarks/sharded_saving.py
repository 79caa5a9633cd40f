"""How much memory a save takes on each process: a checkpoint in parts, against one that rank 0 writes alone.

    python benchmarks/sharded_saving.py [--parameters 100] [--processes 2] [--folder DIR]

A network of so many million parameters is trained for one step of AdamW, sharded by FSDP over gloo, and saved by the
saver of a run. What is printed is the highest resident memory during the save less that before it, by rank.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

_WIDTH = 1536
_MEBIBYTE = 2**20


def peak_of_save(millions: int, folder: Path, *, sharded: bool) -> None:
    """Save on this rank, and print by how many bytes its memory grows."""
    import torch
    from torch import nn

    from cifar_dist.checkpoint import NEW_RUN, Tensors
    from cifar_dist.config import CheckpointConfig, Config
    from cifar_dist.distributed.host_copies import Deal
    from cifar_dist.distributed.start import start_engine
    from cifar_dist.tracking.tracker import SilentTracker
    from cifar_dist.training.saving import CheckpointSaver

    layers = round(millions * 1_000_000 / _WIDTH**2)
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(layers)))
    with start_engine(Config()) as engine:
        model = engine.prepare(module, torch.optim.AdamW(module.parameters()))
        model.begin_step(0.001)
        with model.accumulate():
            model.backward(model(torch.randn(2, _WIDTH)).square().mean())
        model.update()
        saver = CheckpointSaver(
            folder,
            CheckpointConfig(),
            engine.ranks,
            SilentTracker(),
            NEW_RUN,
            sharded=sharded,
            retry=1,
            longest_retry=1,
        )

        def state(deal: Deal) -> Tensors:
            return Tensors(model.state(deal), None, model.optimizer_state(deal))

        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or the save takes memory that was freed before
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        saver.save(state, replace(NEW_RUN, step=1), must=True)
        print(_status("VmHWM") - before)


def _status(key: str) -> int:
    """A number of bytes in /proc/self/status."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return 1024 * int(found[1])


def measured(asked: argparse.Namespace, *, sharded: bool) -> list[int]:
    """The growth on each rank of a job of its own, in MiB."""
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "WORLD_SIZE": str(asked.processes)}
        words = ["--parameters", str(asked.parameters), "--rank-saves", "parts" if sharded else "all"]
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, *words, "--folder", folder],
                env={
                    **os.environ,
                    **place,
                    "ACCELERATE_USE_FSDP": "true",
                    "ACCELERATE_USE_CPU": "true",
                    "LOCAL_WORLD_SIZE": str(asked.processes),
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                },
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(asked.processes)
        ]
        return [int(rank.communicate()[0].splitlines()[-1]) // _MEBIBYTE for rank in ranks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100, help="in millions")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="on the disk to write to (default: that of temporary files)")
    parser.add_argument("--rank-saves", choices=("parts", "all"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank_saves:
        peak_of_save(asked.parameters, asked.folder, sharded=asked.rank_saves == "parts")
        return
    full = 3 * 4 * asked.parameters * 1_000_000 // _MEBIBYTE
    print(f"{asked.parameters} M parameters and AdamW's state are {full} MiB; a save adds, by rank, in MiB:")
    whole = measured(asked, sharded=False)
    parts = measured(asked, sharded=True)
    print(f"written by rank 0: {whole}; in parts: {parts}; {whole[0] / parts[0]:.2f} times as much on rank 0")


if __name__ == "__main__":
    main()
