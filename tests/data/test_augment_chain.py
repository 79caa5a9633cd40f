"""The recipe's transforms inside the batch pipeline: each has an effect, which depends on the sample alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from support.transform_settings import NEEDED
from torch import Tensor

from cifar_dist.config import AugmentConfig, TransformConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.operations.rearrange import Sources
from cifar_dist.data.transforms import Rearrangement, Samples, Transform
from cifar_dist.data.transforms.affine import Affine
from cifar_dist.data.transforms.autoaugment import AutoAugment
from cifar_dist.data.transforms.crop import Crop
from cifar_dist.data.transforms.cutout import Cutout
from cifar_dist.data.transforms.erasing import Erasing
from cifar_dist.data.transforms.flip import Flip
from cifar_dist.data.transforms.gray import Gray
from cifar_dist.data.transforms.jitter import Jitter
from cifar_dist.data.transforms.perspective import Perspective
from cifar_dist.data.transforms.randaugment import RandAugment
from cifar_dist.data.transforms.trivialaugment import TrivialAugment
from cifar_dist.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
JITTER = Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
EACH: list[tuple[TransformConfig, ...]] = [
    (RandAugment(operations=3, magnitude=14),),
    (TrivialAugment(),),
    (AutoAugment(),),
    (Affine(rotation=15),),
    (Affine(translate=0.2),),
    (Affine(scale=(0.7, 1.2)),),
    (Affine(shear=12),),
    (Perspective(p=0.8),),
    (JITTER,),
    (Gray(p=0.7),),
    (Erasing(p=0.9),),
    (Crop(), Flip(), RandAugment(), Affine(rotation=15), Perspective(), JITTER, Gray(), Erasing(), Cutout()),
    (Cutout(), Gray(), Flip(), JITTER, Crop(), Erasing(p=0.8), Erasing(p=0.8)),
]


def augment(transforms: Sequence[TransformConfig], channels_last: bool = False) -> Augment:
    config = AugmentConfig(transforms=tuple(transforms))
    return Augment(config, 7, MEAN, Normalize(MEAN, STD, torch.device("cpu"), channels_last))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (60, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("transforms", EACH, ids=lambda transforms: "-".join(one.name for one in transforms))
def test_a_transform_changes_images_and_depends_on_the_sample_alone(
    transforms: tuple[TransformConfig, ...], images: Tensor
) -> None:
    ids = torch.arange(1000, 1060)
    whole = augment(transforms).pixels(images, ids, epoch=3)
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8
    changed = (whole != images).flatten(1).any(1).float().mean()
    assert changed > 0.4
    some = torch.tensor([59, 3, 17])
    assert torch.equal(augment(transforms).pixels(images[some], ids[some], epoch=3), whole[some])
    assert not torch.equal(augment(transforms).pixels(images, ids, epoch=4), whole)


def test_both_memory_layouts_produce_the_same_numbers(images: Tensor) -> None:
    transforms, ids = EACH[-1], torch.arange(60)
    planar, last = augment(transforms)(images, ids, 0), augment(transforms, channels_last=True)(images, ids, 0)
    assert torch.equal(planar, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", [name for name, item in TransformConfig.variants.items() if not item.mixes])
def test_a_second_transform_of_a_kind_draws_different_numbers(name: str, images: Tensor) -> None:
    """The second one draws from its own stream of random numbers, whatever transforms lie between the two."""
    one = TransformConfig.variants[name](**NEEDED.get(name, {}))  # type: ignore[arg-type]
    assert isinstance(one, Transform)
    ids = torch.arange(60)
    twice = augment((one, Cutout(side=0), one) if name != "cutout" else (one, one)).pixels(images, ids, 3)
    once = augment((one,)).pixels(images, ids, 3)
    samples = Samples(7, 3, ids, (128, 102, 76))
    planes = once.permute(0, 3, 1, 2).contiguous()
    assert torch.equal(one(planes, samples.of_occurrence(1)).permute(0, 2, 3, 1), twice)
    assert not torch.equal(one(planes, samples).permute(0, 2, 3, 1), twice)


def test_the_order_matters(images: Tensor) -> None:
    ids = torch.arange(60)
    for one, other in ((Crop(), Flip()), (Gray(p=0.5), Cutout()), (Erasing(), Flip()), (Affine(rotation=30), Crop())):
        there, back = (augment(order).pixels(images, ids, 0) for order in ((one, other), (other, one)))
        assert not torch.equal(there, back), f"{one} and {other}"


def test_images_without_colour_are_refused_by_what_changes_colours() -> None:
    for one in (RandAugment(), TrivialAugment(), AutoAugment(), JITTER, Gray()):
        with pytest.raises(UserError, match=f"^{one.name} changes colours, and the images have 1 channel;") as caught:
            augment((Crop(), one)).check((32, 32, 1))
        assert "\n" not in str(caught.value)
    augment((Crop(), Flip(), Cutout(), Erasing(), Affine(rotation=5), Perspective())).check((32, 32, 1))


def test_images_without_colour_are_transformed(images: Tensor) -> None:
    transforms = (Affine(rotation=30), Crop(fill="constant"), Erasing(), Cutout())
    gray = images[..., :1].contiguous()
    config, ids = AugmentConfig(transforms=transforms), torch.arange(60)
    plain = Normalize((0.5,), (0.2,), torch.device("cpu"), channels_last=False)
    assert Augment(config, 7, (0.5,), plain).pixels(gray, ids, 0).shape == gray.shape


def test_what_cannot_be_applied_is_refused() -> None:
    with pytest.raises(UserError, match="strange cannot be applied; derive it from Transform, Rearrangement or Mixing"):
        augment((TransformConfig(name="strange"),))


@dataclasses.dataclass(frozen=True)
class Returns(Transform):
    """What a plug-in's author may return by mistake."""

    what: str = ""

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        mistakes: dict[str, object] = {
            "floats": images / 255,
            "half": images[:, :, :16],
            "fewer": images[1:],
            "none": None,
        }
        return mistakes[self.what]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("floats", r"returned torch\.float32 \[60, 3, 32, 32\]; return images of the same type and shape"),
        ("half", r"returned torch\.uint8 \[60, 3, 16, 32\]"),
        ("fewer", r"returned torch\.uint8 \[59, 3, 32, 32\]"),
        ("none", "returned NoneType"),
    ],
)
def test_a_plug_in_that_returns_no_images_is_refused(images: Tensor, what: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        augment((Returns(name="mine", what=what),)).pixels(images, torch.arange(60), 0)


@dataclasses.dataclass(frozen=True)
class Moves(Rearrangement):
    """What the author of a rearrangement may return by mistake."""

    what: str = ""

    def sources(self, sources: Sources, samples: Samples) -> Sources:
        mistakes: dict[str, object] = {
            "none": None,
            "floats": dataclasses.replace(sources, rows=sources.rows / 2),
            "half": dataclasses.replace(sources, columns=sources.columns[:, ::2]),
        }
        return mistakes[self.what]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("none", "mine returned NoneType; return the sources"),
        ("floats", r"rows that are torch\.float32 \[60, 32\]; return torch\.int64 \[60, 32\]"),
        ("half", r"columns that are torch\.int64 \[60, 16\]"),
    ],
)
def test_a_plug_in_that_returns_no_sources_is_refused(images: Tensor, what: str, says: str) -> None:
    with pytest.raises(UserError, match=f"^augment.transforms: .*{says}"):
        augment((Moves(name="mine", what=what),)).pixels(images, torch.arange(60), 0)
