"""Write a packed CIFAR-10 as the files that airbench's scripts read, so that they run unmodified on the same images.

python benchmarks/gpu/airbench_data.py PACKED FOLDER        # FOLDER/cifar10/train.pt and test.pt
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from cifar_dist.data.manifest import Manifest
from cifar_dist.data.read import ShardReader


def main(packed: str, folder: str) -> None:
    manifest = Manifest.load(packed)
    if "val" in manifest.splits:
        manifest = manifest.with_val_in_train()
    out = Path(folder, "cifar10")
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images, labels = ShardReader(manifest, split).all(), torch.from_numpy(manifest.labels(split))
        torch.save({"images": images, "labels": labels, "classes": list(manifest.classes)}, out / f"{split}.pt")
        print(f"{out / split}.pt: {len(images):,} images")


if __name__ == "__main__":
    main(*sys.argv[1:])
