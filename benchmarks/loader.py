"""Batches of CIFAR-10 with random crop and flip: ours against the loaders that people use.

    python benchmarks/loader.py [--data shards/cifar10] [--turns 3]

All of them shuffle, crop 32 after padding 4, flip, normalise, and give float32 batches of 500. The peers are
webdataset, on the same shards; a map-style DataLoader of images in memory, as torchvision's CIFAR10 has them; and
MosaicML Streaming, on local shards of its own, where it is installed. Their transforms are torchvision's, and each has
its best number of workers on this machine, up to its cores, kept alive between passes. First passes open the data and
decode it; ours keeps the decoded images for the later ones.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
import webdataset as wds
from comparison import Comparison, record, take_turns
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from cifar_dist.config import AugmentConfig, DataConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import TrainBatches
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.read import ShardReader

BATCH = 500
Loader = Iterable[object]
"""Yields batches; each iteration over it is an epoch."""


def rate(batches: Iterable[object], images: int) -> float:
    """Images per second of one epoch."""
    begin = time.perf_counter()
    for _ in batches:
        pass
    return images / (time.perf_counter() - begin)


class Ours:
    """The trainer's own path; each iteration is the next epoch."""

    def __init__(self, manifest: Manifest) -> None:
        device = torch.device("cpu")
        self._batches = TrainBatches(
            manifest, DataConfig(), seed=0, batch_size=BATCH, parts=1, own=range(1), device=device
        )
        self._augment = Augment(
            AugmentConfig(), 0, manifest.mean, Normalize(manifest.mean, manifest.std, device, False)
        )
        self._epochs = itertools.count()

    def __iter__(self) -> Iterator[Tensor]:
        epoch = next(self._epochs)
        return (self._augment(b.images, b.ids, epoch) for step in self._batches.epoch(epoch) for b in step)


def transforms(manifest: Manifest) -> v2.Compose:
    return v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(manifest.mean, manifest.std),
        ]
    )


def from_webdataset(manifest: Manifest, workers: int) -> Loader:
    urls = [str(manifest.root / shard.name) for shard in manifest.shards("train")]
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls))
        .shuffle(5000)
        .decode("pil")
        .to_tuple("png", "cls")
        .map_tuple(transforms(manifest), lambda label: label)
        .batched(BATCH)
    )
    loader: Loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )
    return loader


class _InMemory(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Decoded images, as ``torchvision.datasets.CIFAR10`` keeps them and hands them out."""

    def __init__(self, manifest: Manifest) -> None:
        self._images = ShardReader(manifest, "train").all().numpy()
        self._labels = manifest.labels("train").tolist()
        self._transform = transforms(manifest)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


def from_memory(manifest: Manifest, workers: int) -> Loader:
    loader: Loader = torch.utils.data.DataLoader(
        _InMemory(manifest), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return loader


def from_streaming(manifest: Manifest, workers: int, folder: Path) -> Loader:
    from streaming import MDSWriter, StreamingDataset

    if not folder.is_dir():
        images, labels = ShardReader(manifest, "train").all().numpy(), manifest.labels("train").tolist()
        with MDSWriter(out=str(folder), columns={"image": "png", "label": "int"}) as writer:
            for image, label in zip(images, labels, strict=True):
                writer.write({"image": Image.fromarray(image), "label": label})
    transform = transforms(manifest)

    class Dataset(StreamingDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            sample = super().__getitem__(index)
            return transform(sample["image"]), sample["label"]

    dataset = Dataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loader: Loader = torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=workers > 0)
    return loader


def at_its_best(build: Callable[[int], Loader], images: int) -> tuple[int, Loader, float]:
    """Return the number of workers that is fastest in the second epoch, its loader, and its rate in the first one."""
    found = []
    for workers in range(len(os.sched_getaffinity(0)) + 1):
        begin = time.perf_counter()
        loader = build(workers)
        for _ in loader:
            pass
        first = images / (time.perf_counter() - begin)
        found.append((rate(loader, images), workers, loader, first))
    _, workers, loader, _ = max(found, key=lambda one: one[0])
    return workers, loader, max(first for *_, first in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shards/cifar10")
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    manifest = Manifest.load(Path(asked.data))
    images = len(manifest.labels("train"))
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        peers: dict[str, Callable[[int], Loader]] = {
            "a DataLoader of images in memory": lambda workers: from_memory(manifest, workers),
            "webdataset": lambda workers: from_webdataset(manifest, workers),
            "MosaicML Streaming": lambda workers: from_streaming(manifest, workers, Path(folder, "mds")),
        }
        for name, build in peers.items():
            try:
                workers, loader, first = at_its_best(build, images)
            except ImportError as error:
                print(f"{name}: left out, {error}")
                continue
            begin = time.perf_counter()
            ours = Ours(manifest)
            epoch_of_ours = sum(1 for _ in ours) and images / (time.perf_counter() - begin)
            peer = f"{name}, torchvision, {workers} workers"
            comparisons += [
                Comparison("the first epoch from PNG", peer, "images/s", [epoch_of_ours], [first]),
                take_turns(
                    "an epoch of crop and flip",
                    peer,
                    "images/s",
                    partial(rate, ours, images),
                    partial(rate, loader, images),
                    asked.turns,
                ),
            ]
    record(__file__, comparisons, f"{manifest.name}, {images:,} images")


if __name__ == "__main__":
    main()
