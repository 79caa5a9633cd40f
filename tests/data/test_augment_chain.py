"""The recipe's transforms inside the batch pipeline: each does something, and depends on the sample alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cifar_dist.config import AugmentConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.normalize import Normalize
from cifar_dist.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
EACH = [
    AugmentConfig(policy="randaugment", operations=3, magnitude=14),
    AugmentConfig(policy="trivialaugment"),
    AugmentConfig(policy="autoaugment"),
    AugmentConfig(rotation=15),
    AugmentConfig(translate=0.2),
    AugmentConfig(scale=(0.7, 1.2)),
    AugmentConfig(shear=12),
    AugmentConfig(perspective=0.8),
    AugmentConfig(jitter=(0.4, 0.4, 0.4, 0.1)),
    AugmentConfig(gray=0.7),
    AugmentConfig(erasing=0.9),
    AugmentConfig(
        policy="randaugment", rotation=15, perspective=0.5, jitter=(0.2, 0.2, 0.2, 0.1), gray=0.2, erasing=0.3, cutout=8
    ),
]


def augment(config: AugmentConfig, channels_last: bool = False) -> Augment:
    return Augment(config, 7, MEAN, Normalize(MEAN, STD, torch.device("cpu"), channels_last))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (60, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", EACH, ids=lambda config: str(EACH.index(config)))
def test_a_transform_changes_images_and_looks_at_nothing_but_the_sample(config: AugmentConfig, images: Tensor) -> None:
    ids = torch.arange(1000, 1060)
    whole = augment(config).pixels(images, ids, epoch=3)
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8
    plain = augment(AugmentConfig()).pixels(images, ids, epoch=3)
    changed = (whole != plain).flatten(1).any(1).float().mean()
    assert changed > 0.4
    some = torch.tensor([59, 3, 17])
    assert torch.equal(augment(config).pixels(images[some], ids[some], epoch=3), whole[some])
    assert not torch.equal(augment(config).pixels(images, ids, epoch=4), whole)


def test_both_memory_layouts_hold_the_same_numbers(images: Tensor) -> None:
    config, ids = EACH[-1], torch.arange(60)
    planar, last = augment(config)(images, ids, 0), augment(config, channels_last=True)(images, ids, 0)
    assert torch.equal(planar, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_images_without_colour_and_ranges_without_sense_are_refused() -> None:
    with pytest.raises(UserError, match="only flip, crop and cutout work on images of 1 channels"):
        augment(AugmentConfig(rotation=5)).check((32, 32, 1))
    augment(AugmentConfig()).check((32, 32, 1))
    with pytest.raises(UserError, match="must not be negative"):
        augment(AugmentConfig(rotation=-1))
    with pytest.raises(UserError, match=r"scale .* must be two increasing numbers above 0"):
        augment(AugmentConfig(scale=(1.2, 0.8)))
    with pytest.raises(ValueError, match="gray 2 is a probability"):
        AugmentConfig(gray=2)
