"""A small packed dataset of random images: 53 and 11 samples in shards of 7."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from cifar_dist.data.image import Lossless
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.pack import pack
from support.dataset_builders import write_npz

TRAIN, TEST = 53, 11


def small_packed(folder: Path, codec: Lossless) -> Manifest:
    random = np.random.default_rng(0)
    arrays: dict[str, ArrayLike] = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        arrays[f"x_{split}"] = random.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 4
    source = write_npz(folder / "source.npz", arrays)
    out = folder / f"packed-{codec}"
    return pack(source, out, codec=codec, samples_per_shard=7, val_fraction=0, show=False)


def with_val(packed: Manifest, *, labelled: bool) -> Manifest:
    """Return the dataset with ``test`` as ``val``, too."""
    val = tuple(
        shard if labelled else replace(shard, labels=np.full_like(shard.labels, -1)) for shard in packed.shards("test")
    )
    return replace(packed, splits={**packed.splits, "val": val})
