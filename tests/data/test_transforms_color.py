"""Colour operations against torchvision, each sample with its own factor.

Brightness is exact. The others add products of float32, which torchvision fuses and this project does not; the sum is
then truncated to an integer, so a value may differ by one level where the sum is next to one.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_images import assert_unrelated, images
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from cifar_dist.data.operations.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    to_gray,
)
from cifar_dist.data.transforms import Samples
from cifar_dist.data.transforms.gray import Gray
from cifar_dist.data.transforms.jitter import Jitter

FACTORS = st.floats(0, 3, width=32) | st.sampled_from([0.0, 0.5, 1.0, 2.0])
HUES = st.floats(-0.5, 0.5, width=32) | st.sampled_from([-0.5, -0.25, 0.0, 0.5])
BLENDS = [
    (adjust_brightness, reference.adjust_brightness, 0),
    (adjust_contrast, reference.adjust_contrast, 1),
    (adjust_saturation, reference.adjust_saturation, 1),
]


def distance(one: Tensor, other: Tensor) -> int:
    """Return the largest difference of two uint8 tensors."""
    assert one.dtype == other.dtype == torch.uint8
    return int((one.to(torch.int32) - other.to(torch.int32)).abs().max())


@pytest.mark.parametrize(("ours", "theirs", "tolerance"), BLENDS)
@settings(deadline=None, max_examples=50)
@given(factors=st.lists(FACTORS, min_size=1, max_size=7))
def test_blends_are_torchvisions(
    ours: Callable[[Tensor, Tensor], Tensor],
    theirs: Callable[[Tensor, float], Tensor],
    tolerance: int,
    factors: list[float],
) -> None:
    batch = images(len(factors))
    result = ours(batch, torch.tensor(factors))
    for row, factor in enumerate(factors):
        assert distance(result[row], theirs(batch[row], factor)) <= tolerance


@settings(deadline=None, max_examples=50)
@given(shifts=st.lists(HUES, min_size=1, max_size=7))
def test_hue_is_torchvisions(shifts: list[float]) -> None:
    batch = images(len(shifts))
    result = adjust_hue(batch, torch.tensor(shifts))
    for row, shift in enumerate(shifts):
        assert distance(result[row], reference.adjust_hue(batch[row], shift)) <= 1


def many_colors() -> Tensor:
    """Return a million colours, and all with channels in {0, 1, 2, 127, 128, 254, 255}: uint8 [1, 3, h, w]."""
    random = np.random.default_rng(1).integers(0, 256, (1_000_000, 3), dtype=np.uint8)
    corners = np.array(list(itertools.product([0, 1, 2, 127, 128, 254, 255], repeat=3)), dtype=np.uint8)
    return torch.from_numpy(np.concatenate([random, corners]).T.copy())[None, :, None]


def test_few_colors_differ_from_torchvision_at_all() -> None:
    """Over a million colours: one level at most, and in under one value of a thousand (gray: exact in all)."""
    colors = many_colors()
    assert torch.equal(to_gray(colors), reference.rgb_to_grayscale(colors, num_output_channels=3))
    for shift in (0.1, -0.37):
        theirs = reference.adjust_hue(colors, shift)
        ours = adjust_hue(colors, torch.tensor([shift]))
        assert distance(ours, theirs) <= 1
        assert (ours != theirs).float().mean() < 1e-3
    for ours_of, theirs_of, _ in BLENDS:
        factor = torch.tensor([1.2734])
        ours, theirs = ours_of(colors, factor), theirs_of(colors, float(factor))
        assert distance(ours, theirs) <= 1
        assert (ours != theirs).float().mean() < 1e-3


def test_no_shift_of_the_hue_keeps_every_color() -> None:
    colors = many_colors()
    assert torch.equal(adjust_hue(colors, torch.zeros(1)), colors)


def test_gray_keeps_the_channels() -> None:
    batch = images(7)
    for row, gray in enumerate(to_gray(batch)):
        assert torch.equal(gray, reference.rgb_to_grayscale(batch[row], num_output_channels=3))


def test_jitter_applies_the_four_in_the_order_of_the_sample() -> None:
    """Compared with torchvision's operations in sequence, in which a difference of one level grows at the next."""
    batch, ids = images(48), torch.arange(48)
    samples = Samples(5, 1, ids)
    jitter = Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    result = jitter(batch, samples)
    order, amounts = jitter.parameters(samples)
    theirs = (
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    )
    assert len({tuple(row) for row in order.tolist()}) > 10
    for row in range(len(batch)):
        expected = batch[row]
        for which in order[row].tolist():
            expected = theirs[which](expected, float(amounts[row, which]))
        assert distance(result[row], expected) <= 3
        assert (result[row] != expected).float().mean() < 0.02


def test_only_the_given_settings_are_jittered() -> None:
    batch, samples = images(9), Samples(0, 0, torch.arange(9))
    only = Jitter(brightness=0.5)
    _, amounts = only.parameters(samples)
    assert torch.equal(only(batch, samples), adjust_brightness(batch, amounts[:, 0]))


def test_jitter_draws_torchvisions_ranges_and_all_orders() -> None:
    order, amounts = Jitter(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1).parameters(
        Samples(0, 0, torch.arange(24 * 400))
    )
    counts = Counter(tuple(row) for row in order.tolist())
    assert set(counts) == set(itertools.permutations(range(4)))
    assert max(abs(count - 400) for count in counts.values()) < 6 * math.sqrt(400)
    for column, (low, high) in enumerate([(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1)]):
        values, width = amounts[:, column], high - low
        assert low - 1e-6 <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high + 1e-6
        assert abs(float(values.mean()) - (low + high) / 2) < 6 * width / math.sqrt(12 * len(values))
    assert_unrelated(torch.cat([amounts, order[:, :2].to(torch.float32)], dim=1), but={(4, 5)})


def test_gray_is_applied_with_its_probability() -> None:
    batch = images(1).expand(2000, -1, -1, -1)
    gray = (Gray(p=0.3)(batch, Samples(0, 0, torch.arange(2000))) != batch).flatten(1).any(dim=1)
    assert abs(int(gray.sum()) - 600) < 6 * math.sqrt(2000 * 0.3 * 0.7)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_invalid_ranges_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} -0.1 must"):
        Jitter(**{name: -0.1})  # type: ignore[arg-type]  # a number, and never the name
    with pytest.raises(ValueError, match=r"^hue 0.6 must be in \[0, 0.5\]"):
        Jitter(hue=0.6)
    with pytest.raises(ValueError, match="are all 0; set one of them"):
        Jitter()
    with pytest.raises(ValueError, match=r"^p 2 is a probability"):
        Gray(p=2)
