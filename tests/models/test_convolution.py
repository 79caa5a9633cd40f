"""The hand-made convolution equals torch's, and so do its gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_dist.models.convolution import UnfoldConv2d, convolve

small = st.integers(1, 3)


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 3),
    groups=small,
    inputs=small,
    outputs=small,
    kernel=st.tuples(small, small),
    stride=st.tuples(small, small),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(small, small),
    side=st.tuples(st.integers(7, 9), st.integers(7, 9)),
    with_bias=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_convolve_is_torchs_conv2d(
    images: int,
    groups: int,
    inputs: int,
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    side: tuple[int, int],
    with_bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(images, groups * inputs, *side, dtype=torch.float64)
    weight = torch.randn(groups * outputs, inputs, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(groups * outputs, dtype=torch.float64, requires_grad=True) if with_bias else None
    learning = [weight] if bias is None else [weight, bias]
    expected = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    actual = convolve(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(expected)
    for ours, torchs in zip(
        torch.autograd.grad((actual * direction).sum(), learning),
        torch.autograd.grad((expected * direction).sum(), learning),
        strict=True,
    ):
        torch.testing.assert_close(ours, torchs)


def test_the_layer_has_torchs_parameters_and_numbers() -> None:
    torchs = torch.nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2)
    ours = UnfoldConv2d(4, 6, (3, 2), stride=2, padding=1, groups=2)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(ours(x), torchs(x))
