"""Convolutions that train faster in bfloat16 on a CPU: their gradients are those of torch's, rounded alike."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from cifar_dist import models
from cifar_dist.cpu import conv2d
from cifar_dist.cpu import gradients as of_convolutions
from cifar_dist.cpu.conv2d import _begins, replace_convolutions
from cifar_dist.cpu.instructions import has_amx


def gradients(conv: nn.Module, images: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output of a convolution, and the gradients of the images and the weight."""
    seen = images.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = conv(seen)
    out.float().square().sum().backward()
    weight = conv.get_parameter("weight")
    assert seen.grad is not None
    assert weight.grad is not None
    return out.detach(), seen.grad, weight.grad


def is_multiplied(conv: nn.Module, images: Tensor) -> bool:
    with torch.autocast("cpu", torch.bfloat16):
        return "_Convolution" in str(conv(images).grad_fn)


class Doubled(nn.Conv2d):
    """A convolution that is not torch's."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolved: Tensor = super()._conv_forward(input, weight, bias)
        return 2 * convolved


@settings(max_examples=40, deadline=None)
@given(
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.integers(1, 2),
    bias=st.booleans(),
    layout=st.sampled_from([torch.channels_last, torch.contiguous_format]),
    at_once=st.sampled_from([1, 2**22]),
    amx=st.booleans(),
)
def test_they_are_those_of_torch(
    side: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    bias: bool,
    layout: torch.memory_format,
    at_once: int,
    amx: bool,
) -> None:
    torch.manual_seed(0)
    assume(all(map(_begins, side, kernel, stride, padding, dilation)))
    assume(amx or stride[1] == 1 or not has_amx())  # with it, oneDNN computes some of these wrongly
    plain = nn.Conv2d(128, 6, kernel, stride, padding, dilation, groups, bias).to(memory_format=layout)
    images = torch.randn(25, 128, *side).to(memory_format=layout)
    own, exact = copy.deepcopy(plain), copy.deepcopy(plain)
    replace_convolutions(own)
    own = copy.deepcopy(own)
    rights = gradients(exact, images, dtype=torch.float32)  # torch's of bfloat16 may be uninitialised
    assume(rights[2].any())  # with AMX, oneDNN crashes where a dilated kernel meets nothing but padding
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(of_convolutions, "_MOST_BYTES", at_once)
        patched.setattr(conv2d, "_HAS_AMX", amx)
        found, wanted = gradients(own, images), gradients(plain, images)
    for our, right in zip(found, rights, strict=True):
        assert (our - right).norm() <= 0.02 * right.norm()
    assert stride[1] > 1 or all(map(torch.equal, found[:2], wanted[:2]))
    assert found[2][rights[2] == 0].count_nonzero() == 0, "the weights that meet nothing but padding"
    assert own.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=60, deadline=None)
@given(
    side=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    inputs=st.sampled_from([3, 16, 24, 64]),
    kernel=st.integers(1, 4),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from([0, 1, 2, "valid", "same"]),
    trains=st.booleans(),
    compiled=st.just(False),
)
@example(side=(8, 8), inputs=16, kernel=4, stride=(4, 4), padding="valid", trains=False, compiled=False)
@example(side=(8, 8), inputs=16, kernel=4, stride=(4, 4), padding=0, trains=False, compiled=False)
@example(side=(9, 2), inputs=16, kernel=3, stride=(2, 2), padding=1, trains=True, compiled=False)
@example(side=(9, 2), inputs=16, kernel=3, stride=(2, 2), padding=1, trains=True, compiled=True)
def test_strided_convolutions_are_right_in_bfloat16(
    side: tuple[int, int],
    inputs: int,
    kernel: int,
    stride: tuple[int, int],
    padding: int | str,
    trains: bool,
    compiled: bool,
) -> None:
    """With AMX, oneDNN's of these examples are not."""
    torch.manual_seed(0)
    assume(padding == "same" or min(side) + 2 * (padding if isinstance(padding, int) else 0) >= kernel)
    assume(padding != "same" or stride == (1, 1))
    conv = nn.Conv2d(inputs, 8, kernel, stride, padding).to(memory_format=torch.channels_last).bfloat16()
    images = torch.randn(2, inputs, *side).to(memory_format=torch.channels_last).bfloat16()
    weight, bias = conv.weight.detach().float(), conv.get_parameter("bias").detach().float()
    right = nn.functional.conv2d(images.float(), weight, bias, stride, padding)
    replace_convolutions(conv)
    conv.requires_grad_(trains)
    if compiled:
        conv.compile(backend="eager", fullgraph=True)
    assert (conv(images).float() - right).norm() <= 0.01 * right.norm()


@pytest.mark.parametrize(("side", "stride", "padding"), [(1, 2, 1), (1, 3, 1), (2, 3, 1), (1, 1, "same")])
@pytest.mark.parametrize(
    ("groups", "bias", "compiled"), [(1, False, False), (1, True, False), (4, False, False), (1, False, True)]
)
def test_those_that_meet_nothing_but_padding_are_zero(
    side: int, stride: int, padding: int | str, groups: int, bias: bool, compiled: bool
) -> None:
    """As in the last stage of a ResNet on small images. OneDNN leaves in them what the memory had before."""
    conv = nn.Conv2d(32 * groups, 64, 3, stride, padding, groups=groups, bias=bias)
    images = torch.randn(3, 32 * groups, side, side)
    replace_convolutions(conv)
    if compiled:
        conv.compile(backend="eager", fullgraph=True)
    for _ in range(9):
        before = [torch.full((64 * 32 * 9,), math.nan, dtype=dtype) for dtype in (torch.float32, torch.bfloat16) * 9]
        del before
        conv.weight.grad = None
        *_, found = gradients(conv, images)
        assert found.count_nonzero() == 64 * 32 * side**2, "the others are 0"


@pytest.mark.parametrize(
    ("conv", "side", "used"),
    [
        (nn.Conv2d(64, 8, 3, padding=1, bias=False), 4, True),
        (nn.Conv2d(64, 8, 3, padding=1, stride=2, bias=False), 8, True),
        (nn.Conv2d(64, 8, 3, bias=False), 8, True),
        (nn.Conv2d(64, 8, 3, padding="valid", bias=False), 8, True),
        (nn.Conv2d(64, 8, 3, padding=1, bias=False), 5, False),
        (nn.Conv2d(32, 8, 3, padding=1, bias=False), 4, False),
        (nn.Conv2d(64, 8, 1, bias=False), 4, False),
        (nn.Conv2d(64, 8, 3, padding=1), 4, False),
        (nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), 4, False),
        (nn.Conv2d(64, 8, 3, padding="same", bias=False), 4, True),
        (weight_norm(nn.Conv2d(64, 8, 3, padding=1, bias=False)), 4, True),
        (Doubled(64, 8, 3, padding=1, bias=False), 4, False),
        (nn.Conv2d(192, 8, 3, padding=1, bias=False), 8, False),
    ],
)
def test_they_are_used_where_they_are_faster(
    monkeypatch: pytest.MonkeyPatch, conv: nn.Conv2d, side: int, used: bool
) -> None:
    monkeypatch.setattr(conv2d, "_HAS_AMX", False)
    replace_convolutions(conv)
    images = torch.randn(2, conv.in_channels, side, side)
    assert is_multiplied(conv, images) is used
    conv.requires_grad_(False)
    assert not is_multiplied(conv, images.requires_grad_())


@pytest.mark.parametrize(
    ("conv", "side", "used"),
    [
        (nn.Conv2d(64, 8, 3, padding=1, bias=False), 9, True),
        (nn.Conv2d(64, 8, 3, padding=1, stride=2, bias=False), 17, True),
        (nn.Conv2d(64, 8, 1, stride=2, bias=False), 8, True),
        (nn.Conv2d(64, 8, 1, bias=False), 8, False),
        (nn.Conv2d(64, 8, 3, padding=1, bias=False), 10, False),
        (nn.Conv2d(32, 8, 3, padding=1, bias=False), 8, False),
        (nn.Conv2d(64, 8, 3, padding=2, bias=False), 4, False),
    ],
)
def test_with_amx_they_are_used_for_larger_images(
    monkeypatch: pytest.MonkeyPatch, conv: nn.Conv2d, side: int, used: bool
) -> None:
    monkeypatch.setattr(conv2d, "_HAS_AMX", True)
    replace_convolutions(conv)
    assert is_multiplied(conv, torch.randn(2, conv.in_channels, side, side)) is used


def test_fp32_is_left_to_onednn() -> None:
    conv = nn.Conv2d(64, 8, 3, padding=1, bias=False)
    own, images = copy.deepcopy(conv), torch.randn(2, 64, 4, 4)
    replace_convolutions(own)
    ours, torchs = (gradients(one, images, dtype=torch.float32) for one in (own, conv))
    assert all(map(torch.equal, ours, torchs))


def test_the_last_group_of_speed_net_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv2d, "_HAS_AMX", False)
    shapes: list[torch.Size] = []
    multiply = of_convolutions.weight_gradient

    def multiplied(images: Tensor, gradient: Tensor, *place: of_convolutions.Pair, **how: Any) -> Tensor:
        shapes.append(gradient.shape[1:])
        return multiply(images, gradient, *place, **how)

    monkeypatch.setattr(conv2d, "weight_gradient", multiplied)
    network = models.build("speed-net", classes=10, options={"widths": [64, 64, 128]})
    replace_convolutions(network)
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(torch.randn(4, 3, 32, 32)).float().square().sum()
    loss.backward()
    assert shapes == [(3, 3, 128), (6, 6, 128)]
