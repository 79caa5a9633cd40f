"""Levels and edges against torchvision, each sample with its own parameter. All but sharpness are exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy import uint8
from numpy.typing import NDArray
from support.small_images import images
from torchvision.transforms.v2 import functional as reference

from cifar_dist.data.operations.tone import adjust_sharpness, autocontrast, equalize, invert, posterize, solarize

BATCHES = arrays.arrays(
    uint8, st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
)


@settings(deadline=None, max_examples=150)
@given(BATCHES)
def test_autocontrast_equalize_and_invert_are_torchvisions(array: NDArray[uint8]) -> None:
    batch = torch.from_numpy(array.copy())
    ours = autocontrast(batch), equalize(batch), invert(batch)
    for row, image in enumerate(batch):
        assert torch.equal(ours[0][row], reference.autocontrast(image))
        assert torch.equal(ours[1][row], reference.equalize(image))
        assert torch.equal(ours[2][row], reference.invert(image))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(14, 11), (32, 32), (40, 56)])
def test_autocontrast_and_equalize_of_larger_images_are_torchvisions(channels: int, size: tuple[int, int]) -> None:
    """Equalize changes only images of more than 255 pixels."""
    batch = images(28, *size, channels)
    ours = autocontrast(batch), equalize(batch)
    assert not torch.equal(ours[1], batch) or size == (14, 11)
    for row, image in enumerate(batch):
        assert torch.equal(ours[0][row], reference.autocontrast(image))
        assert torch.equal(ours[1][row], reference.equalize(image))


def test_posterize_is_torchvisions() -> None:
    batch, bits = images(18), torch.arange(18) % 9
    for dtype in (torch.int64, torch.float32):
        result = posterize(batch, bits.to(dtype))
        for row, image in enumerate(batch):
            assert torch.equal(result[row], reference.posterize(image, int(bits[row])))


@settings(deadline=None)
@given(st.lists(st.floats(0, 255, width=32) | st.sampled_from([0.0, 60.0, 61.0, 255.0]), min_size=1, max_size=7))
def test_solarize_is_torchvisions(thresholds: list[float]) -> None:
    batch = images(len(thresholds))
    result = solarize(batch, torch.tensor(thresholds))
    for row, threshold in enumerate(thresholds):
        assert torch.equal(result[row], reference.solarize(batch[row], threshold))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.floats(0, 3, width=32) | st.sampled_from([0.0, 1.0, 1.9, 2.0]), min_size=1, max_size=7),
    st.sampled_from([(14, 11, 3), (9, 9, 1), (3, 3, 3), (2, 9, 3), (9, 1, 1)]),
)
def test_sharpness_is_torchvisions(factors: list[float], size: tuple[int, int, int]) -> None:
    """One level at most where the sum of float32 products, truncated to an integer, is next to one."""
    batch = images(len(factors), *size)
    result = adjust_sharpness(batch, torch.tensor(factors))
    for row, factor in enumerate(factors):
        expected = reference.adjust_sharpness(batch[row], factor)
        assert (result[row].to(torch.int32) - expected.to(torch.int32)).abs().max() <= 1


def test_sharpness_of_one_changes_nothing_and_the_blur_is_exact() -> None:
    batch = images(14, 32, 32)
    assert torch.equal(adjust_sharpness(batch, torch.ones(14)), batch)
    assert torch.equal(adjust_sharpness(batch, torch.zeros(14)), reference.adjust_sharpness(batch, 0.0))
