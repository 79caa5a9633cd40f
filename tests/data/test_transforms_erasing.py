"""Random erasing against torchvision: the pixels for the same box, and the distribution of the boxes."""

from __future__ import annotations

import math

import pytest
import torch
from support.small_images import images
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from cifar_dist.data.operations.boxes import erase
from cifar_dist.data.transforms import Samples
from cifar_dist.data.transforms.affine import Affine
from cifar_dist.data.transforms.cutout import Cutout
from cifar_dist.data.transforms.erasing import Erasing
from cifar_dist.errors import UserError


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("fill", [(0,), (9, 80, 255)])
def test_erase_is_torchvisions(dtype: torch.dtype, fill: tuple[int, ...]) -> None:
    batch, samples = images(60).to(dtype), Samples(0, 0, torch.arange(60), fill)
    transform = Erasing(p=0.8)
    boxes = transform.boxes(samples, 14, 11)
    result = erase(batch, boxes, fill)
    assert torch.equal(transform(batch, samples), result)
    for row, box in enumerate(boxes.tolist()):
        expected = reference.erase(batch[row], *box, torch.tensor(fill, dtype=dtype)[:, None, None])
        assert torch.equal(result[row], expected)


def torchvisions_boxes(count: int, height: int, width: int, area: tuple[float, float]) -> Tensor:
    transform, image = v2.RandomErasing(p=1, scale=area), torch.zeros(3, height, width, dtype=torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [transform.make_params([image]) for _ in range(count)]
    return torch.tensor([[d["i"], d["j"], d["h"], d["w"]] if d["v"] is not None else [0, 0, 0, 0] for d in drawn])


@pytest.mark.parametrize("area", [(0.02, 0.33), (0.7, 1.0)])
def test_boxes_follow_torchvisions_law(area: tuple[float, float]) -> None:
    """Mean and spread of position and size agree within six standard errors; large areas often fail to fit."""
    ours = Erasing(p=1.0, area=area).boxes(Samples(0, 0, torch.arange(10_000)), 32, 24).to(torch.float64)
    ours *= ours[:, 2:3] > 0  # where a box that is not there lies is of no meaning
    theirs = torchvisions_boxes(2500, 32, 24, area).to(torch.float64)
    for one, other in ((ours, theirs), (ours**2, theirs**2), ((ours == 0).double(), (theirs == 0).double())):
        error = torch.sqrt(one.var(0) / len(one) + other.var(0) / len(other))
        assert ((one.mean(0) - other.mean(0)).abs() <= 6 * error).all()


def test_boxes_lie_inside_and_are_applied_with_their_probability() -> None:
    top, left, height, width = Erasing(p=0.3).boxes(Samples(7, 2, torch.arange(4000)), 14, 11).unbind(1)
    assert min(int(edge.min()) for edge in (top, left, height, width)) >= 0
    assert (top + height).max() <= 14
    assert (left + width).max() <= 11
    erased = int(((height > 0) & (width > 0)).sum())
    assert abs(erased - 1200) < 6 * math.sqrt(4000 * 0.3 * 0.7)


def test_a_fill_for_another_number_of_channels_is_refused() -> None:
    samples = Samples(0, 0, torch.arange(3), fill=(1, 2, 3))
    for transform in (Erasing(), Affine(rotation=5), Cutout()):
        with pytest.raises(UserError, match=r"fill \[1, 2, 3\] must be one number or 1"):
            transform(images(3, channels=1), samples)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"p": 1.5}, "p 1.5 is a probability"),
        ({"area": (0.5, 0.1)}, "area"),
        ({"area": (0.5, 1.1)}, "area"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
    ],
)
def test_invalid_ranges_are_refused(wrong: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}"):
        Erasing(**wrong)  # type: ignore[arg-type]  # what a recipe would give
