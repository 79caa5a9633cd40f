"""How much memory a save takes on each process: a checkpoint in parts, against one that rank 0 writes alone.

    python benchmarks/sharded_saving.py [--parameters 100] [--processes 2] [--folder DIR]

A network of so many million parameters is trained for one step of AdamW, sharded by FSDP over gloo, and saved by the
saver of a run, in a job of its own for each figure. What is printed is the highest resident memory during the save less
that before it, by rank. Linux only.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from workers import Workers

_MEBIBYTE = 2**20


def measure(kind: str, millions: int, processes: int, folder: Path | None) -> list[int]:
    """The growth on each rank of a job of its own, in MiB; ``kind`` is ``parts`` or ``all``."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as out,
        Workers(["saving.py", str(millions), out, kind], processes=processes) as job,
    ):
        return [int(str(answer)) // _MEBIBYTE for answer in job.ask()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100, help="in millions")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="on the disk to write to (default: that of temporary files)")
    asked = parser.parse_args()
    full = 3 * 4 * asked.parameters * 1_000_000 // _MEBIBYTE
    print(
        f"{asked.parameters} M parameters and AdamW's state are {full} MiB; a save adds, by rank, in MiB:", flush=True
    )
    whole, parts = (measure(kind, asked.parameters, asked.processes, asked.folder) for kind in ("all", "parts"))
    print(f"written by rank 0: {whole}; in parts: {parts}; {whole[0] / parts[0]:.2f} times as much on rank 0")


if __name__ == "__main__":
    main()
