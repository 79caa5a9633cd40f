"""Golden pixels: the images that a network gets from each shipped recipe and from each setting of version 1.

``golden/augmentation.json`` has checksums from the code of version 1, in which augmentation was not yet a list of
transforms, and from the version that added a recipe since. One without an entry is not tested. If the augmentation of a
recipe changes on purpose (it changes everybody's runs), or a recipe is to be tested from now on, write all of them with

    python tests/data/test_augmentation_golden.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
import torch
from torch import Tensor

from cifar_dist import recipe
from cifar_dist.config import AugmentConfig
from cifar_dist.config.augment_version_1 import upgraded_augment
from cifar_dist.config.build import build_config
from cifar_dist.config.saved import read_config
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import Batch
from cifar_dist.data.mix import Mix
from cifar_dist.data.normalize import Normalize

FILE = Path(__file__).parent / "golden" / "augmentation.json"
GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
MEAN = (0.4914, 0.4822, 0.4465)
OLD = """
[run]
name = "old"
[augment]
flip = "alternating"
crop = 2
cutmix = 0.5
mix_alpha = 2
[optim] # by which version 1 is known
name = "sgd"
momentum = 0.9
betas = [0.9, 0.999]
backbone_lr = 1.0
rest_lr = 1.0
rest_momentum = 0.9
iterations = 5
"""


def batches() -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """Images, labels and ids of a few samples, and an epoch."""
    random = np.random.default_rng(0)
    for count, side, epoch, first in ((24, 32, 0, 0), (9, 32, 7, 49_990), (5, 40, 122, 2**33)):
        images = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        images[::4] = np.linspace(0, 255, side, dtype=np.uint8)[None, None, :, None]
        images[1::6] //= 4
        labels, ids = random.integers(0, 10, count), random.permutation(count) + first
        yield torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(ids), epoch


def checksums(config: AugmentConfig, seed: int) -> str:
    """Of the augmented pixels, and of the mixed images and targets, of each batch."""
    # A scale of 1 and a shift of 0: normalisation would round as the processor does.
    plain = Normalize((0.0,) * 3, (1 / 255,) * 3, torch.device("cpu"), channels_last=False)
    augment = Augment(config, seed, MEAN, plain)
    mix = Mix(config, augment, 10)
    found = []
    for images, labels, ids, epoch in batches():
        weight = torch.ones(len(ids) - 1)
        begin = 0 if mix.mixes else 1
        shown, targets = mix(Batch(images[begin:], labels[begin:], ids[begin:], weight), epoch)
        checksum = hashlib.sha256()
        for tensor in (augment.pixels(images, ids, epoch), shown, targets):
            checksum.update(tensor.contiguous().numpy().tobytes())
        found.append(checksum.hexdigest()[:16])
    return " ".join(found)


@pytest.mark.parametrize("name", GOLDEN["recipes"])
def test_a_recipe_shows_its_golden_pixels(name: str) -> None:
    advice = "; if that is meant, run: python tests/data/test_augmentation_golden.py"
    assert name in recipe.shipped(), f"it is not shipped any more{advice}"
    assert checksums(recipe.load(name).augment, 0) == GOLDEN["recipes"][name], f"everybody's runs change{advice}"


class Golden(TypedDict):
    """Settings of version 1, and the checksums of the pixels that they gave."""

    settings: dict[str, object]
    sums: str


@pytest.mark.parametrize("old", GOLDEN["version 1"], ids=lambda old: json.dumps(old["settings"]))
def test_settings_of_version_1_give_their_pixels(old: Golden) -> None:
    tree = {"augment": upgraded_augment(old["settings"])}
    config = build_config(tree, where="version 1").augment
    assert checksums(config, 3) == old["sums"]
    assert [list(values) for values in (config.mean, config.std)] == [
        old["settings"].get(k, []) for k in ("mean", "std")
    ]
    assert upgraded_augment(tree["augment"]) == tree["augment"], "a list stays as it is"


def test_a_transform_that_was_off_in_version_1_is_not_in_the_list() -> None:
    every = {"flip": "none", "crop": 0, "crop_fill": "reflect", "policy": "none", "operations": 2, "magnitude": 9}
    every |= {"rotation": 0.0, "translate": 0.0, "scale": [1.0, 1.0], "shear": 0.0, "perspective": 0.0, "gray": 0.0}
    every |= {"jitter": [0.0] * 4, "erasing": 0.0, "cutout": 0, "mixup": 0.0, "cutmix": 0.0, "mix_alpha": 1.0}
    assert upgraded_augment({**every, "mean": [], "std": []}) == {"transforms": [], "mean": [], "std": []}


def test_a_run_folder_of_version_1_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(OLD)
    config = read_config(file)
    now = (
        '[{ name = "crop", pad = 2 }, { name = "flip", kind = "alternating" }, { name = "cutmix", p = 0.5, alpha = 2 }]'
    )
    assert config.augment == recipe.load("demo", ["--augment.transforms", now]).augment


if __name__ == "__main__":
    GOLDEN["recipes"] = {name: checksums(recipe.load(name).augment, 0) for name in recipe.shipped()}
    FILE.write_text(json.dumps(GOLDEN, indent=1) + "\n", encoding="utf-8")
