"""Batches of CIFAR-10 with random crop and flip: ours against webdataset with torchvision in a DataLoader.

    python benchmarks/loader.py [shards/cifar10]

Both read the same packed shards, shuffle, crop 32 after padding 4, flip, normalise, and give float32 batches of 500.
The peer is the pipeline that the webdataset documentation shows, at its best number of workers on this machine. The
first pass (reading and decoding) and the passes after it are told apart: ours keeps the decoded images.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from cifar_dist.config import AugmentConfig, DataConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import TrainBatches
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.normalize import Normalize

BATCH = 500


def rate(batches: Iterable[torch.Tensor]) -> float:
    """Images per second."""
    begin, images = time.perf_counter(), 0
    for batch in batches:
        images += len(batch)
    return images / (time.perf_counter() - begin)


def ours(manifest: Manifest) -> tuple[float, float]:
    """Images per second in the first pass, opening included, and in the second."""
    begin = time.perf_counter()
    device = torch.device("cpu")
    batches = TrainBatches(manifest, DataConfig(), seed=0, batch_size=BATCH, parts=1, own=range(1), device=device)
    augment = Augment(AugmentConfig(), 0, manifest.mean, Normalize(manifest.mean, manifest.std, device, False))

    def epoch(number: int) -> Iterable[torch.Tensor]:
        return (augment(b.images, b.ids, number) for step in batches.epoch(number) for b in step)

    images = sum(len(batch) for batch in epoch(0))
    return images / (time.perf_counter() - begin), rate(epoch(1))


def peer(manifest: Manifest, workers: int) -> tuple[float, float]:
    """The same from webdataset, torchvision.transforms.v2 and a DataLoader."""
    import webdataset as wds
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(manifest.mean, manifest.std),
        ]
    )
    urls = [str(manifest.root / shard.name) for shard in manifest.shards("train")]
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls))
        .shuffle(5000)
        .decode("pil")
        .to_tuple("png", "cls")
        .map_tuple(transform, lambda label: label)
        .batched(BATCH)
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0, multiprocessing_context=None
    )
    begin = time.perf_counter()
    images = sum(len(batch) for batch, _ in loader)
    return images / (time.perf_counter() - begin), rate(batch for batch, _ in loader)


def main() -> None:
    manifest = Manifest.load(Path(sys.argv[1] if len(sys.argv) > 1 else "shards/cifar10"))
    cores = len(os.sched_getaffinity(0))
    first, later = ours(manifest)
    print(f"ours                     first pass {first:9,.0f} images/s   later passes {later:9,.0f} images/s")
    best = (0.0, 0.0)
    for workers in range(cores + 1):
        speed = peer(manifest, workers)
        print(f"webdataset, {workers:2} workers   first pass {speed[0]:9,.0f} images/s   later passes {speed[1]:9,.0f}")
        best = max(best[0], speed[0]), max(best[1], speed[1])
    print(f"ratio to its best        first pass {first / best[0]:9.2f}            later passes {later / best[1]:9.2f}")


if __name__ == "__main__":
    main()
