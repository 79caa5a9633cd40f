"""Convolutions in 8-bit integers: those of exact numbers are exact, those of others are right in the mean."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cifar_dist.cpu import conv2d
from cifar_dist.cpu.conv2d import convolutions_in_int8, replace_convolutions
from cifar_dist.cpu.gradients import Pair
from cifar_dist.cpu.instructions import has_amx, has_int8_products
from cifar_dist.cpu.int8 import Int8Convolution

pytestmark = pytest.mark.skipif(not has_int8_products(), reason="this CPU has no dot products of 8-bit integers")

pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


def passes(
    images: Tensor,
    weight: Tensor,
    direction: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (1, 1),
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a convolution, and the gradients of the images and the weight of its product with ``direction``."""
    seen = (images.to(dtype, copy=True).requires_grad_(), weight.clone().requires_grad_())
    out = Int8Convolution.apply(*seen, stride, padding)
    found = torch.autograd.grad(out, seen, torch.ones_like(out) if direction is None else direction.to(out))
    return out.detach(), *found


def random_weight() -> Tensor:
    return torch.randn(24, 16, 3, 3).to(memory_format=torch.channels_last)


def integers(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return numbers that 8 bits hold: the first and last of each row are the extremes, so that the scales are 1."""
    drawn = torch.randint(-127, 128, shape, generator=generator).float()
    drawn[..., 0], drawn[..., -1] = 127, -127
    return drawn


@settings(max_examples=60, deadline=None)
@given(
    side=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    kernel=pair,
    stride=pair,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    images=st.integers(1, 5),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    seed=st.integers(0, 2**31 - 1),
)
def test_products_of_8_bit_numbers_are_exact(
    side: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    images: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    assume(stride[1] == 1 or not has_amx())  # with AMX, which never trains in 8 bits, oneDNN computes some wrongly
    side = (max(side[0], kernel[0]), max(side[1], kernel[1]))
    generator = torch.Generator().manual_seed(seed)
    weight = integers((24, *kernel, 16), generator).permute(0, 3, 1, 2)
    weight[0] = weight[:, :, 0, 0] = 127.0  # the largest of each output and of each input
    seen = integers((images, *side, 16), generator).permute(0, 3, 1, 2)
    exact = (seen.double().requires_grad_(), weight.double().requires_grad_())
    out = nn.functional.conv2d(*exact, stride=stride, padding=padding)
    direction = integers((images, *out.shape[2:], 24), generator).permute(0, 3, 1, 2)
    wanted = (out.detach(), *torch.autograd.grad(out, exact, direction.double()))
    found = passes(seen, weight, direction, stride, padding, dtype)
    assert torch.equal(found[0], wanted[0].to(dtype))
    assert torch.equal(found[1], wanted[1].to(dtype))
    assert torch.equal(found[2], wanted[2].float())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_real_numbers_are_rounded_by_a_hundredth(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    images, weight = torch.randn(64, 16, 8, 8).to(memory_format=layout), random_weight()
    exact = (images.clone().requires_grad_(), weight.clone().requires_grad_())
    out = nn.functional.conv2d(*exact, padding=1)
    direction = torch.randn(64, 24, 8, 8)
    wanted = (out.detach(), *torch.autograd.grad(out, exact, direction))
    for found, right in zip(passes(images, weight, direction), wanted, strict=True):
        assert 0.001 < (found - right).norm() / right.norm() < 0.03


def test_gradients_below_one_step_keep_their_mean() -> None:
    """Rounded to nearest they would vanish, as those of images that a network is sure of."""
    torch.manual_seed(0)
    images = torch.ones(256, 16, 8, 8)
    direction = torch.full((256, 24, 8, 8), 0.1)
    direction[0, 0, 0, 0] = 127.0  # one step is 1
    *_, of_weight = passes(images, random_weight(), direction)
    assert of_weight[1:, :, 1, 1] == pytest.approx(0.1 * 256 * 64, rel=0.1)


def test_the_largest_gradient_keeps_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is drawn: 127 plus the largest number below 1 is 128 in float32, which as int8 is -128."""
    largest = torch.nextafter(torch.ones(()), torch.zeros(()))
    monkeypatch.setattr(torch, "rand", lambda count: largest.expand(count).clone())
    images, direction = torch.ones(1, 16, 8, 8), torch.zeros(1, 24, 8, 8)
    direction[0, 0, 4, 4] = 127.0
    *_, of_weight = passes(images, random_weight(), direction)
    assert of_weight[0, 0, 1, 1] == 127


def test_the_same_seed_rounds_alike() -> None:
    torch.manual_seed(0)
    images, weight, direction = torch.randn(4, 16, 8, 8), random_weight(), torch.randn(4, 24, 8, 8)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(passes(images, weight, direction))
    assert all(map(torch.equal, results[0], results[1]))
    assert torch.equal(results[0][0], results[2][0]), "nothing is drawn in the forward pass"
    assert not torch.equal(results[0][2], results[2][2])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_rounded_away(bad: float) -> None:
    """A run whose loss is not finite stops; integers have no NaN."""
    images, weight, direction = torch.randn(2, 16, 8, 8), random_weight(), torch.randn(2, 24, 8, 8)
    images[0, 0, 0, 0] = bad
    assert passes(images, weight)[0].isfinite().sum() == 0
    direction[0, 0, 0, 0] = bad
    _, of_images, of_weight = passes(torch.randn(2, 16, 8, 8), weight, direction)
    assert of_images.isfinite().sum() == of_weight.isfinite().sum() == 0


def test_zeros_are_zeros() -> None:
    zeros, images, weight = torch.zeros(2, 16, 8, 8), torch.randn(2, 16, 8, 8), random_weight()
    out, _, of_weight = passes(zeros, weight)
    assert out.count_nonzero() == of_weight.count_nonzero() == 0
    out, of_images, _ = passes(images, torch.zeros_like(weight))
    assert out.count_nonzero() == of_images.count_nonzero() == 0
    _, of_images, of_weight = passes(images, weight, torch.zeros(2, 24, 8, 8))
    assert of_images.count_nonzero() == of_weight.count_nonzero() == 0


@pytest.mark.parametrize(
    ("conv", "side", "used"),
    [
        (nn.Conv2d(64, 64, 3, padding=1, bias=False), 64, True),
        (nn.Conv2d(64, 64, 3, stride=2, bias=False), 96, True),
        (nn.Conv2d(64, 64, 3, bias=False), 32, False),
        (nn.Conv2d(64, 64, 1, bias=False), 64, False),
        (nn.Conv2d(16, 64, 3, bias=False), 64, False),
        (nn.Conv2d(64, 64, 3), 64, False),
        (nn.Conv2d(64, 64, 3, bias=False, groups=64), 64, False),
        (nn.Conv2d(64, 64, 3, bias=False, padding="same"), 64, True),
    ],
)
def test_they_are_used_where_they_are_faster(
    monkeypatch: pytest.MonkeyPatch, conv: nn.Conv2d, side: int, used: bool
) -> None:
    """A training step in either number format was timed."""
    monkeypatch.setattr(conv2d, "_HAS_AMX", False)  # with it they are never used
    replace_convolutions(conv)
    images = torch.randn(8, conv.in_channels, side, side, requires_grad=True)

    def computes(dtype: torch.dtype = torch.bfloat16, *, enabled: bool = True) -> bool:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), convolutions_in_int8(enabled):
            return "Int8" in str(conv(images).grad_fn)

    assert computes() is used
    assert not computes(enabled=False)
    assert computes(torch.float32) is used
    with torch.no_grad():
        assert not computes()
    conv.weight.requires_grad = False
    assert not computes()
