"""Write a packed CIFAR-10 as the files that airbench's scripts read, so that they run unmodified on the same images.

python benchmarks/gpu/airbench_data.py PACKED FOLDER        # FOLDER/cifar10/train.pt and test.pt
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from cifar_dist.data.manifest import Manifest
from cifar_dist.data.read import ShardReader


def write(packed: str, folder: Path, at_most: int | None = None) -> Path:
    """Write ``train.pt`` and ``test.pt`` into ``folder/cifar10``, and return that.

    Args:
        packed: folder of the packed dataset; images of its validation split are training images.
        folder: is created.
        at_most: images of each split, the first ones; None for all.
    """
    manifest = Manifest.load(packed).for_training(hold_out=False)
    out = folder / "cifar10"
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        labels = torch.from_numpy(manifest.labels(split))[:at_most]
        images = ShardReader(manifest, split).images(torch.arange(len(labels)))
        torch.save({"images": images, "labels": labels, "classes": list(manifest.classes)}, out / f"{split}.pt")
    return out


if __name__ == "__main__":
    print(f"wrote train.pt and test.pt to {write(sys.argv[1], Path(sys.argv[2]))}")
