"""Test-time augmentation: airbench's levels, and random views that are the same on any device and rank."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist import recipe
from cifar_dist.config import AugmentConfig
from cifar_dist.config.eval import distinct_views
from cifar_dist.data.augment import Augment
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.transforms.crop import Crop
from cifar_dist.data.transforms.cutout import Cutout
from cifar_dist.data.transforms.flip import Flip
from cifar_dist.data.transforms.gray import Gray
from cifar_dist.data.transforms.mixup import MixUp
from cifar_dist.evaluation.views import View, make_views

CROP_3 = AugmentConfig(transforms=(Crop(pad=3), Flip()))
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
NORMALIZE = Normalize(MEAN, STD, torch.device("cpu"), channels_last=False)
IMAGES = torch.randint(0, 256, (5, 12, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([3, 1, 4, 15, 92])


def views(tta: str, config: AugmentConfig | None = None, seed: int = 0) -> list[View]:
    return list(make_views(tta, config or AugmentConfig(), seed, MEAN, NORMALIZE)(IMAGES, IDS))


# airbench94's three levels (Keller Jordan, its `evaluate`), written out by hand.


def infer_basic(inputs: Tensor, net: nn.Module) -> Tensor:
    logits: Tensor = net(inputs)
    return logits


def infer_mirror(inputs: Tensor, net: nn.Module) -> Tensor:
    return 0.5 * infer_basic(inputs, net) + 0.5 * infer_basic(inputs.flip(-1), net)


def infer_mirror_translate(inputs: Tensor, net: nn.Module) -> Tensor:
    logits = infer_mirror(inputs, net)
    pad = 1
    height, width = inputs.shape[-2:]
    padded_inputs = F.pad(inputs, (pad,) * 4, "reflect")
    inputs_translate_list = [
        padded_inputs[:, :, 0:height, 0:width],
        padded_inputs[:, :, 2 : height + 2, 2 : width + 2],
    ]
    logits_translate = torch.stack([infer_mirror(x, net) for x in inputs_translate_list]).mean(0)
    return 0.5 * logits + 0.5 * logits_translate


@pytest.mark.parametrize(
    ("tta", "reference", "number"),
    [("0", infer_basic, 1), ("mirror", infer_mirror, 2), ("translate", infer_mirror_translate, 6)],
)
def test_the_levels_are_airbenchs(tta: str, reference: Callable[[Tensor, nn.Module], Tensor], number: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 10, 10))
    looks = views(tta)
    assert len(looks) == number
    with torch.no_grad():
        averaged = torch.stack([weight * net(view) for weight, view in looks]).sum(dim=0)
        torch.testing.assert_close(averaged, reference(NORMALIZE(IMAGES), net))


@pytest.mark.parametrize("tta", ["0", "00", "1", "mirror", "translate", "2", "7", "1024"])
def test_the_weights_of_views_sum_to_one(tta: str) -> None:
    looks = views(tta)
    assert sum(weight for weight, _ in looks) == pytest.approx(1)
    assert all(view.shape == (5, 3, 12, 10) and view.dtype == torch.float32 for _, view in looks)
    assert torch.equal(looks[0][1], NORMALIZE(IMAGES)), "the first look is at the image itself"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("tta", ["0", "mirror", "translate", "3"])
def test_a_network_may_change_a_view_in_place(tta: str, channels_last: bool) -> None:
    """As one that begins with ``x -= mean``, or with a ReLU in place."""
    normalize = Normalize(MEAN, STD, torch.device("cpu"), channels_last)
    make, given = make_views(tta, CROP_3, 0, MEAN, normalize), IMAGES.clone()
    expected = [view.clone() for _, view in make(given, IDS)]
    for (_, view), same in zip(make(given, IDS), expected, strict=True):
        assert torch.equal(view, same)
        assert view.is_contiguous(memory_format=torch.channels_last) == channels_last
        view.zero_()
    assert torch.equal(given, IMAGES)


def test_random_views_are_the_recipes_own_and_differ() -> None:
    looks = [view for _, view in views("8", CROP_3)]
    for i, one in enumerate(looks):
        assert all(not torch.equal(one, other) for other in looks[:i])
    expected = Augment(CROP_3, 0, MEAN, NORMALIZE)(IMAGES, IDS, -5)
    assert torch.equal(looks[5], expected)
    again = [view for _, view in views("8", CROP_3)]
    assert all(torch.equal(one, other) for one, other in zip(looks, again, strict=True))
    other_seed = [view for _, view in views("8", CROP_3, seed=1)]
    assert not any(torch.equal(one, other) for one, other in zip(looks[1:], other_seed[1:], strict=True))


def test_a_random_view_of_an_image_does_not_depend_on_its_batch() -> None:
    make = make_views("4", AugmentConfig(), 0, MEAN, NORMALIZE)
    whole = list(make(IMAGES, IDS))
    part = list(make(IMAGES[3:4], IDS[3:4]))
    for (_, of_whole), (_, of_part) in zip(whole, part, strict=True):
        assert torch.equal(of_whole[3:4], of_part)


def test_random_views_are_of_single_images() -> None:
    transforms = (Gray(p=0.5), Crop(), Cutout())
    mixed, alone = (views("4", AugmentConfig(transforms=chosen)) for chosen in ((*transforms, MixUp()), transforms))
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(mixed, alone, strict=True))


@pytest.mark.parametrize("name", recipe.shipped())
def test_no_view_of_a_shipped_recipe_repeats_another(name: str) -> None:
    config = recipe.load(name)
    shown = [view for _, view in views(config.distinct_tta, config.augment)]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(shown, 2))


def test_views_that_would_repeat_others_are_omitted() -> None:
    flips = [(Flip(kind=kind),) for kind in ("random", "alternating")]
    assert [
        distinct_views("16", AugmentConfig(transforms=own)) for own in ((), (MixUp(),), *flips, (Crop(), Flip()))
    ] == ["0", "0", "mirror", "mirror", "16"]


def test_views_flip_independently_where_training_alternates() -> None:
    config = AugmentConfig(transforms=(Flip(kind="alternating"), Crop(pad=0)))
    mirror = NORMALIZE(IMAGES).flip(-1)
    flipped = [view for _, view in views("16", config)]
    shown = {tuple(bool(torch.equal(view[i], mirror[i])) for view in flipped) for i in range(5)}
    assert len(shown) == 5, "each sample tosses for itself in each view"
