"""Crop, flip, colour jitter and RandAugment of 32x32 images: ours on a batch against torchvision v2 in a DataLoader.

    python benchmarks/augment.py

Both give uint8 batches of 512 with parameters of its own for each image. The peer is torchvision on tensors and on
Pillow images. Ours runs with every number of threads and the peer with every number of workers up to the machine's
cores; then the best one of each take turns. Images are in memory on both sides, so reading and decoding cost nothing.
The machine must be idle: threads that wait for each other suffer most from a busy one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

import torch
from comparison import record, take_turns
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from cifar_dist.config import AugmentConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.transforms import Samples
from cifar_dist.data.transforms.jitter import Jitter
from cifar_dist.data.transforms.randaugment import RandAugment

BATCH = 512
BATCHES = 4  # of one pass of the peer
SEED = 0
JITTER = (0.4, 0.4, 0.4, 0.1)


def images(count: int) -> Tensor:
    """uint8 [count, 32, 32, 3]: noise enlarged four times, which has the edges and the flat places of a picture."""
    noise = torch.randint(0, 256, (count, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(SEED))
    return noise.repeat_interleave(4, 1).repeat_interleave(4, 2)


def ours(batch: Tensor) -> dict[str, float]:
    """Images per second of each stage and of all together: the best of 20 passes, each another epoch of one batch."""
    mean = (0.5, 0.5, 0.5)
    crop_and_flip = Augment(AugmentConfig(), SEED, mean, Normalize(mean, mean, torch.device("cpu"), False)).pixels
    brightness, contrast, saturation, hue = JITTER
    jitter = Jitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    rand_augment = RandAugment()
    ids = torch.arange(BATCH)
    stages: dict[str, Callable[[Tensor, int], Tensor]] = {
        "crop and flip": lambda x, epoch: crop_and_flip(x, ids, epoch),
        "to planes": lambda x, _: x.permute(0, 3, 1, 2).contiguous(),
        "jitter": lambda x, epoch: jitter(x, Samples(SEED, epoch, ids)),
        "RandAugment": lambda x, epoch: rand_augment(x, Samples(SEED, epoch, ids)),
    }
    seconds = []
    for epoch in range(21):  # the first one warms up
        x, spent = batch, []
        for stage in stages.values():
            begin = time.perf_counter()
            x = stage(x, epoch)
            spent.append(time.perf_counter() - begin)
        seconds.append([*spent, sum(spent)])
    best = torch.tensor(seconds[1:]).amin(dim=0)
    return {name: BATCH / float(s) for name, s in zip([*stages, "all"], best, strict=True)}


class _Samples(torch.utils.data.Dataset[Tensor]):
    def __init__(self, items: list[Tensor] | list[Image.Image], transform: v2.Transform) -> None:
        self._items, self._transform = items, transform

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:
        result: Tensor = self._transform(self._items[index])
        return result


def loader(items: list[Tensor] | list[Image.Image], workers: int) -> torch.utils.data.DataLoader[Tensor]:
    """The peer, whose workers live on between passes."""
    transforms = [
        v2.RandomCrop(32, padding=4, padding_mode="reflect"),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(*JITTER),
        v2.RandAugment(),
    ]
    if isinstance(items[0], Image.Image):
        transforms.append(v2.PILToTensor())
    return torch.utils.data.DataLoader(
        _Samples(items, v2.Compose(transforms)), BATCH, num_workers=workers, persistent_workers=workers > 0
    )


def rate(batches: Iterable[Tensor]) -> float:
    """Images per second of one pass."""
    begin = time.perf_counter()
    count = sum(len(batch) for batch in batches)
    return count / (time.perf_counter() - begin)


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    pixels = images(BATCH * BATCHES)
    best_threads: dict[int, float] = {}
    for threads in range(cores, 0, -1):
        torch.set_num_threads(threads)
        rates = ours(pixels[:BATCH])
        best_threads[threads] = rates["all"]
        for stage, images_per_second in rates.items():
            print(f"ours, {stage:14} {threads:2} threads {images_per_second:9,.0f} images/s")
    kinds: dict[str, list[Tensor] | list[Image.Image]] = {
        "tensors": list(pixels.permute(0, 3, 1, 2).contiguous()),
        "Pillow images": [Image.fromarray(image.numpy()) for image in pixels],
    }
    found = []
    for kind, items in kinds.items():
        for workers in range(cores + 1):
            batches = loader(items, workers)
            rate(batches)
            found.append((rate(batches), kind, workers, batches))
            print(f"torchvision, {kind:13}, {workers:2} workers {found[-1][0]:9,.0f} images/s")
    _, kind, workers, batches = max(found, key=lambda one: one[0])
    torch.set_num_threads(max(best_threads, key=best_threads.__getitem__))
    what, peer = "crop, flip, jitter and RandAugment", f"torchvision v2 on {kind}, {workers} workers"
    comparison = take_turns(what, peer, "images/s", lambda: ours(pixels[:BATCH])["all"], lambda: rate(batches), turns=3)
    record(__file__, [comparison])


if __name__ == "__main__":
    main()
