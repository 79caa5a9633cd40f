"""Layer tables and receptive fields, against torchvision's published costs, known fields, and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cifar_dist.models import build
from cifar_dist.models.convolution import use_unfold_convolutions
from cifar_dist.models.receptive_field import Field, FieldTracer, Span
from cifar_dist.models.registry import names
from cifar_dist.models.summary import Summary, summarize

SIDE = 320


def summary(name: str, side: int = 32, classes: int = 10, **options: Any) -> Summary:
    with torch.device("meta"):
        model = build(name, classes=classes, options=options)
    return summarize(model, (side, side, 3))


# ---- receptive fields -------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + x
        return out


class Branches(nn.Module):
    """Two parallel branches of the same output size, as in Inception, reduced to one channel."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], dim=1).mean(dim=1, keepdim=True)


def conv(kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> nn.Conv2d:
    return nn.Conv2d(1, 1, kernel, stride=stride, padding=padding, dilation=dilation, bias=False)


@st.composite
def same_size(draw: st.DrawFn) -> nn.Module:
    kernel, dilation = draw(st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 1)]))
    return conv((kernel, 3), padding=(dilation * (kernel // 2), dilation), dilation=dilation)


@st.composite
def layer(draw: st.DrawFn) -> nn.Module:
    kind = draw(st.sampled_from(["conv", "pool", "pad", "residual", "branches", "relu"]))
    if kind == "conv":
        sides = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        return conv(sides, draw(st.integers(1, 2)), draw(st.integers(0, 2)), draw(st.integers(1, 2)))
    if kind == "pool":
        kernel = draw(st.integers(2, 3))
        return nn.AvgPool2d(kernel, draw(st.integers(1, 2)), draw(st.integers(0, kernel // 2)))
    if kind == "pad":
        return nn.ZeroPad2d(draw(st.tuples(*[st.integers(0, 2)] * 4)))
    if kind == "residual":
        return Residual(draw(same_size()))
    if kind == "branches":
        return Branches(draw(same_size()), draw(same_size()))
    return nn.ReLU()


@settings(max_examples=60)
@given(layers=st.lists(layer(), min_size=1, max_size=4))
def test_a_field_is_exactly_where_the_gradient_reaches(layers: list[nn.Module]) -> None:
    model = nn.Sequential(*layers).double()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    images = torch.ones(1, 1, SIDE, SIDE, dtype=torch.float64, requires_grad=True)
    output = model(images)
    middle = [side // 2 for side in output.shape[2:]]
    (gradient,) = torch.autograd.grad(output[0, 0, middle[0], middle[1]], images)
    tracer = FieldTracer()
    with torch.no_grad(), tracer:
        tracer.set_input(images)
        field = tracer.field_of(model(images))
    assert field is not None
    for axis, span in enumerate((field.height, field.width)):
        reached = gradient[0, 0].sum(dim=1 - axis).nonzero().flatten().tolist()
        low, high = middle[axis] * span.jump + span.low, middle[axis] * span.jump + span.high
        assert low >= 0, "nowhere near the edge, where padding has no gradient"
        assert high < SIDE
        assert [reached[0], reached[-1]] == [low, high]


def test_a_max_pool_reaches_as_far_as_an_average_pool() -> None:
    fields = []
    for pool in (nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d((3, 3), (2, 2), 1, 1)):
        tracer, image = FieldTracer(), torch.zeros(1, 1, SIDE, SIDE)
        with torch.no_grad(), tracer:
            tracer.set_input(image)
            fields.append(tracer.field_of(pool(conv(3)(image))))
    assert fields == [Field(Span(2, -1, 3), Span(2, -1, 3))] * 3
    assert summarize(nn.Sequential(conv(3), nn.MaxPool2d(2, dilation=3)), (SIDE, SIDE, 1)).receptive_field == 3 + 3


@pytest.mark.parametrize(
    ("name", "side", "last_pool"),
    [("alexnet", 224, 195), ("vgg16", 224, 212)],  # both end their features in a pool that is not global
)
def test_fields_are_those_that_the_literature_gives(name: str, side: int, last_pool: int) -> None:
    """Araujo et al., Distill 2019, table 1."""
    fields = [layer.field for layer in summary(f"torchvision:{name}", side).layers if layer.kernel]
    assert fields[-1] is not None
    assert max(field.size for field in fields if field) == last_pool


@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_fields_of_branches_of_different_lengths() -> None:
    assert summary("torchvision:inception_v3", 299).last_convolution == 1311  # Araujo et al., table 1
    assert summary("torchvision:resnet34", 224).last_convolution == 899
    assert summary("resnet34", 224).last_convolution == 899


def test_a_gate_gives_every_position_the_entire_image_as_field() -> None:
    assert summary("se-resnet", widths=[8, 8], blocks=[1, 1]).receptive_field == math.inf
    assert summary("torchvision:mobilenet_v3_small", 64).receptive_field == math.inf


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "convnext_tiny"])
def test_no_field_is_claimed_where_positions_are_mixed_otherwise(name: str) -> None:
    counted = summary(f"torchvision:{name}", 224)
    assert counted.receptive_field is None
    assert counted.last_convolution is None
    assert counted.pools_as_strides is None


def test_pools_as_strides_leave_out_kernels_between_convolutions_only() -> None:
    model = nn.Sequential(conv(3), nn.MaxPool2d(2), conv(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    counted = summarize(model, (10, 10, 1))  # 10 -> 8 -> 4 -> 2 -> 1
    assert counted.receptive_field == 3 + 1 + 2 * 2 + 2 * 1
    assert counted.pools_as_strides == 3 + 2 * 2 + 2 * 1
    assert counted.last_convolution == 8


# ---- parameters and multiply-adds -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "efficientnet_b0", "vit_b_32", "swin_t", "convnext_tiny"])
def test_costs_are_those_that_torchvision_publishes(name: str) -> None:
    published = next(iter(torchvision.models.get_model_weights(name))).meta
    counted = summary(f"torchvision:{name}", 224, 1000)
    assert counted.parameters == published["num_params"]
    assert sum(layer.parameters for layer in counted.layers) == counted.parameters
    assert counted.multiply_adds / 1e9 == pytest.approx(published["_ops"], abs=0.0006)


@pytest.mark.parametrize("name", names())
def test_every_network_is_counted_completely_and_not_changed(name: str) -> None:
    model = build(name, classes=10, options={})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    if sum(value.numel() for value in model.parameters()) > 5_000_000:  # slow to compute
        model.to("meta")
    one, many = summarize(model, (32, 32, 3)), summarize(model, (32, 32, 3), 7)
    assert one.parameters == sum(value.numel() for value in model.parameters())
    assert sum(layer.parameters for layer in one.layers) == one.parameters
    assert many.multiply_adds == 7 * one.multiply_adds > 0
    assert many.output_bytes == 7 * one.output_bytes
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if not next(model.parameters()).is_meta:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_row_says_what_the_layer_is() -> None:
    rows = {row.name: row for row in summary("custom-resnet").layers}
    conv, pool, head = rows["layer3.1.body.0.0"], rows["layer1.0.1"], rows["head"]
    assert (conv.kind, conv.inputs, conv.outputs) == ("Conv2d", (512, 4, 4), (512, 4, 4))
    assert (conv.kernel, conv.stride) == ((3, 3), (1, 1))
    assert (conv.parameters, conv.multiply_adds) == (512 * 512 * 9, 512 * 512 * 9 * 16)
    assert conv.field == Field(Span(8, -20, 27), Span(8, -20, 27))
    assert (pool.kernel, pool.stride, pool.parameters, pool.multiply_adds) == ((2, 2), (2, 2), 0, 0)
    assert (head.inputs, head.outputs, head.parameters, head.multiply_adds) == ((512,), (10,), 5130, 5120)
    assert head.field is None
    assert rows["pool"].kernel == (4, 4)
    assert not any(row.kind in ("ReLU", "Sequential") for row in rows.values())


def test_handmade_convolutions_have_the_same_counts() -> None:
    model = build("small-resnet", classes=10, options={"widths": [8, 16], "blocks": [1, 1]})
    torchs = summarize(model, (16, 16, 3))
    use_unfold_convolutions(model)
    ours = summarize(model, (16, 16, 3))
    assert ours.multiply_adds == torchs.multiply_adds
    assert ours.receptive_field == torchs.receptive_field == 1 + 2 + 4 + 2 + 4 + 2 * 7


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.conv(x)) * self.scale
        return out


def test_shared_and_uncalled_parameters_are_counted_once() -> None:
    counted = summarize(Twice(), (8, 8, 3))
    assert [(row.name, row.parameters) for row in counted.layers] == [("", 3 + 6), ("conv", 84), ("conv", 0)]
    assert counted.multiply_adds == 2 * 81 * 64
    assert counted.receptive_field == 5


def test_frozen_parameters_are_counted_separately() -> None:
    model = Twice()
    model.conv.requires_grad_(False)
    assert (summarize(model, (8, 8, 3)).parameters, summarize(model, (8, 8, 3)).trainable) == (93, 9)
