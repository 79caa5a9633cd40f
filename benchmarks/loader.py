"""Batches of CIFAR-10 with random crop and flip: ours against the loaders that people use.

    python benchmarks/loader.py [--data shards/cifar10] [--images 10000] [--turns 3]
        [--peers dataloader webdataset streaming]

All of them shuffle, crop 32 after padding 4, flip, normalise, and give float32 batches of 500. The peers are
webdataset, on the same shards; a map-style DataLoader of images in memory, as torchvision's CIFAR10 has them; and
MosaicML Streaming, on local shards of its own, where it is installed. Their transforms are torchvision's, and each has
its best number of workers on this machine, up to its cores, kept alive between epochs. A first epoch opens the data and
decodes it, with a new loader in each turn; ours keeps the decoded images for the later ones. Freed memory is kept, for
all of them, as the trainer keeps it on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import webdataset as wds
from comparison import Comparison, record, take_turns
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from cifar_dist.config import AugmentConfig, DataConfig
from cifar_dist.cpu.malloc import keep_freed_memory
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import TrainBatches
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.read import ShardReader

BATCH = 500
PEERS = ("dataloader", "webdataset", "streaming")
Loader = Iterable[object]
"""Yields batches; each iteration over it is an epoch."""


def rate(build: Callable[[], Loader], images: int) -> float:
    """Images per second of one epoch, with the time that it takes to build the loader."""
    begin = time.perf_counter()
    for _ in build():
        pass
    return images / (time.perf_counter() - begin)


def take_shards(manifest: Manifest, images: int) -> Manifest:
    """Return the first training shards that have so many images together; all for 0."""
    shards, taken = manifest.shards("train"), 0
    while taken < len(shards) and (not images or sum(shard.samples for shard in shards[:taken]) < images):
        taken += 1
    return replace(manifest, splits={"train": shards[:taken]})


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
        .to_tuple("png;jpg;jpeg", "cls")
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


def write_for_streaming(manifest: Manifest, folder: Path) -> None:
    """Write the images as shards of Streaming."""
    from streaming import MDSWriter

    images, labels = ShardReader(manifest, "train").all().numpy(), manifest.labels("train").tolist()
    with MDSWriter(out=str(folder), columns={"image": "png", "label": "int"}) as writer:
        for image, label in zip(images, labels, strict=True):
            writer.write({"image": Image.fromarray(image), "label": label})


def from_streaming(manifest: Manifest, workers: int, folder: Path) -> Loader:
    from streaming import StreamingDataset

    transform = transforms(manifest)
    own = Path(tempfile.mkdtemp(dir=folder.parent), "shards")  # a folder may be in use by one dataset only
    own.symlink_to(folder)

    class Dataset(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            sample = super().__getitem__(index)
            return transform(sample["image"]), sample["label"]

    dataset = Dataset(local=str(own), shuffle=True, batch_size=BATCH)
    loader: Loader = torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=workers > 0)
    return loader


def find_best_workers(build: Callable[[int], Loader], images: int) -> int:
    """Return the number of workers, up to the cores, that is fastest in the second epoch."""

    def second_epoch(workers: int) -> float:
        loader = build(workers)
        rate(lambda: loader, images)
        found = rate(lambda: loader, images)
        print(f"{workers} workers: {found:,.0f} images/s", file=sys.stderr, flush=True)
        return found

    return max(range(len(os.sched_getaffinity(0)) + 1), key=second_epoch)


def compare(name: str, build: Callable[[int], Loader], manifest: Manifest, turns: int) -> list[Comparison]:
    """Compare first epochs, each with a new loader, and later epochs."""
    images = manifest.samples("train")
    workers = find_best_workers(build, images)
    peer = f"{name}, {workers} workers"

    first = take_turns(
        "the first epoch from PNG",
        peer,
        "images/s",
        lambda: rate(lambda: Ours(manifest), images),
        lambda: rate(lambda: build(workers), images),
        turns,
    )
    ours, theirs = Ours(manifest), build(workers)  # the turn that is not counted is their first epoch
    what = "a later epoch of crop and flip"
    later = take_turns(
        what, peer, "images/s", lambda: rate(lambda: ours, images), lambda: rate(lambda: theirs, images), turns
    )
    return [first, later]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shards/cifar10")
    parser.add_argument("--images", type=int, default=10_000, help="at least so many, complete shards; 0: all")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    asked = parser.parse_args()
    keep_freed_memory()
    manifest = take_shards(Manifest.load(Path(asked.data)), asked.images)
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder, "mds")
        peers: dict[str, tuple[str, Callable[[int], Loader]]] = {
            "dataloader": ("torchvision's DataLoader", lambda workers: from_memory(manifest, workers)),
            "webdataset": ("webdataset", lambda workers: from_webdataset(manifest, workers)),
            "streaming": ("MosaicML Streaming", lambda workers: from_streaming(manifest, workers, shards)),
        }
        for key in asked.peers:
            name, build = peers[key]
            try:
                if key == "streaming":
                    write_for_streaming(manifest, shards)
            except ImportError as error:
                print(f"{name}: left out, {error}")
                continue
            comparisons += compare(name, build, manifest, asked.turns)
    record(__file__, comparisons, f"{manifest.name}, {manifest.samples('train'):,} images")


if __name__ == "__main__":
    main()
