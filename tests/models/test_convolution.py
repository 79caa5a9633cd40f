"""The hand-made convolution equals torch's, and so do its gradients, in every network."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_dist.config import ModelConfig, OptionValue
from cifar_dist.models import build, build_for
from cifar_dist.models.convolution import UnfoldConv2d, convolve, use_unfold_convolutions

small = st.integers(1, 3)
pair = st.tuples(small, small)
zero_to_two = st.integers(0, 2)


class Operators(TorchDispatchMode):
    """Records the names of the operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(operator.name())
        return operator(*args, **(kwargs or {}))


def gradients(layer: nn.Module, x: Tensor, direction: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((layer(x) * direction).sum(), [x, *layer.parameters()])


@pytest.mark.filterwarnings("ignore:Using len")
def test_a_trace_takes_another_number_of_images() -> None:
    """As the file of an exported network does."""
    layer = UnfoldConv2d(4, 6, 3, padding=1, groups=2)
    traced = torch.jit.trace(layer, torch.zeros(2, 4, 8, 8))
    images = torch.randn(5, 4, 8, 8)
    assert torch.equal(traced(images), layer(images))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=150, deadline=None)
@given(
    images=st.integers(1, 3),
    groups=small,
    inputs=small,
    outputs=small,
    kernel=pair,
    stride=pair,
    padding=st.one_of(zero_to_two, st.tuples(zero_to_two, zero_to_two), st.sampled_from(["same", "valid"])),
    padding_mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    dilation=pair,
    side=st.tuples(st.integers(7, 9), st.integers(7, 9)),
    bias=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_handmade_layer_has_the_outputs_and_gradients_of_torchs(
    images: int,
    groups: int,
    inputs: int,
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int | tuple[int, int] | str,
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"],
    dilation: tuple[int, int],
    side: tuple[int, int],
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    torchs = nn.Conv2d(
        groups * inputs,
        groups * outputs,
        kernel,
        stride=1 if padding == "same" else stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        padding_mode=padding_mode,
        dtype=torch.float64,
    )
    ours = use_unfold_convolutions(copy.deepcopy(torchs))
    assert isinstance(ours, UnfoldConv2d)
    x = torch.randn(images, groups * inputs, *side, dtype=torch.float64, requires_grad=True)
    expected = torchs(x)
    torch.testing.assert_close(ours(x), expected, atol=1e-10, rtol=1e-10)
    direction = torch.randn_like(expected)
    for mine, theirs in zip(gradients(ours, x, direction), gradients(torchs, x, direction), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


def test_a_handmade_convolution_can_be_differentiated_twice() -> None:
    x, weight = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((1, 2, 5, 5), (2, 2, 3, 3)))
    assert torch.autograd.gradgradcheck(convolve, (x, weight))


@pytest.mark.parametrize(("padding", "stride"), [("same", 2), ("full", 1)])
def test_convolve_refuses_the_padding_that_torch_refuses(padding: str, stride: int) -> None:
    x, weight = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 3, 3)
    with pytest.raises(RuntimeError):
        F.conv2d(x, weight, stride=stride, padding=padding)
    with pytest.raises(ValueError, match=rf"padding '{padding}' does not work with stride \({stride}, {stride}\); use"):
        convolve(x, weight, stride=stride, padding=padding)


def test_autocast_gives_the_type_that_torch_gives() -> None:
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        actual = use_unfold_convolutions(layer)(x)
    assert actual.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, atol=2e-2, rtol=2e-2)


NETWORKS: list[tuple[str, dict[str, OptionValue]]] = [
    ("custom-resnet", {}),
    ("resnet18", {}),
    ("se-resnet", {"widths": [8, 16], "blocks": [1, 1], "dropout": 0.0}),
    ("speed-net-96", {"widths": [4, 8, 8], "whiten_gain": 8.0}),
    ("wrn-16-8", {"depth": 10, "width": 1}),
    ("torchvision:shufflenet_v2_x0_5", {}),  # grouped convolutions
]


@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_no_handmade_network_calls_torchs_convolution_and_all_return_its_numbers(
    name: str, options: dict[str, OptionValue]
) -> None:
    def network(conv: Literal["torch", "handmade"]) -> nn.Module:
        torch.manual_seed(0)
        config = ModelConfig(name=name, options=options, conv=conv)
        return build_for(config, shape=(32, 32, 3), classes=10).train()

    torchs, ours = network("torch"), network("handmade")
    ours.load_state_dict(torchs.state_dict())
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert type(ours) is type(torchs)
    images, seen = torch.randn(2, 3, 32, 32), {}
    for which, model in (("torch", torchs), ("hand", ours)):
        with Operators() as operators:
            loss = F.cross_entropy(model.double()(images.double()), torch.arange(2))
            loss.backward()
        seen[which] = operators.names
    assert {"aten::convolution", "aten::convolution_backward"} <= seen["torch"]
    assert not any("conv" in operator for operator in seen["hand"])
    learnt = dict(ours.named_parameters())
    for key, parameter in torchs.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(learnt[key].grad, parameter.grad, atol=1e-8, rtol=1e-6)


class Standardised(nn.Conv2d):
    """A layer like some in timm, which transform the weight and call ``conv2d`` themselves."""

    def forward(self, input: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_a_derived_layer_keeps_its_additions_and_nothing_outside_changes() -> None:
    torch.manual_seed(0)
    # In double precision: standardised weights give outputs of some tens, where float32 sums differ by their order.
    other, x = nn.Conv2d(3, 4, 3).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = nn.Sequential(Standardised(3, 4, 3, padding=1), Standardised(4, 4, 3)).double()
    expected = model(x)
    assert use_unfold_convolutions(use_unfold_convolutions(model)) is model  # twice is once
    with Operators() as operators:
        actual = model(x)
    assert "aten::convolution" not in operators.names
    torch.testing.assert_close(actual, expected)
    assert isinstance(model[0], Standardised)
    with Operators() as operators:
        other(x)
    assert "aten::convolution" in operators.names


def test_a_handmade_network_can_be_copied_and_keeps_its_hooks() -> None:
    model = build("tiny-cnn", classes=10, options={})
    seen: list[torch.Size] = []
    next(model.modules()).register_forward_hook(lambda *call: seen.append(call[2].shape))
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    torch.testing.assert_close(copy.deepcopy(use_unfold_convolutions(model))(images), expected)
    assert seen == [(2, 10), (2, 10)]
