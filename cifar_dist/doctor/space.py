"""Whether the checkpoints to come have room."""

from __future__ import annotations

import shutil
from pathlib import Path

from cifar_dist import checkpoint
from cifar_dist.config import Config
from cifar_dist.doctor.finding import Finding, Verdict
from cifar_dist.formatting import size
from cifar_dist.run_folder import RunFolder


def room_for_checkpoints(config: Config, size_bytes: int) -> Finding:
    """Compare the free space with the checkpoints to come, each of ``size_bytes``; those that exist are replaced."""
    folder = Path(config.run.dir)
    existing = checkpoint.listing(RunFolder.of(config).checkpoints)
    wanted = config.checkpoint.keep + 2  # the best one, and the one that is being written
    needed = max(1, wanted - len(existing)) * size_bytes
    beside = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(beside).free
    text = f"{size(free)} free in {folder}; {wanted} checkpoints of {size(size_bytes)} take {size(wanted * size_bytes)}"
    text += f", of which {len(existing)} exist" if existing else ""
    remedy = "free some, choose another --run.dir, or keep fewer: --checkpoint.keep 1"
    return Finding.ok_or(Verdict.FAILED, "space", text, remedy if free < needed else "")
