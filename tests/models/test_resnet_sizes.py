"""The parameter counts that the studies of these networks published, to the unit."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cifar_dist.config import OptionValue
from cifar_dist.models import build

FOUR_STAGES: dict[str, OptionValue] = {"widths": [32, 64, 128, 256], "blocks": [3, 4, 4, 3], "pool": 4}

STUDY: list[tuple[int, dict[str, OptionValue]]] = [
    (2_777_674, {}),
    (2_809_866, {"widths": [32, 64, 128, 256], "blocks": [2, 2, 2, 2], "pool": 4}),
    (2_811_818, {"widths": [16, 32, 64, 128, 256], "blocks": [2, 2, 2, 2, 2], "pool": 2}),
    (4_253_770, {"blocks": [2, 3, 3]}),
    (4_327_754, {"blocks": [3, 3, 3]}),
    (4_549_194, {"blocks": [2, 4, 3]}),
    (4_918_602, {"blocks": [3, 5, 3]}),
    (4_556_874, {"blocks": [2, 4, 3], "pool": 4}),
    (4_926_282, {"blocks": [3, 5, 3], "pool": 4}),
    (4_957_002, {"blocks": [3, 5, 3], "pool": 2}),
    (4_914_250, {"blocks": [3, 3, 3], "kernels": [1, 3, 1], "expansion": 4}),
    (4_911_178, {"blocks": [2, 3, 2], "kernels": [1, 5], "stem_kernel": 5}),
    (4_964_170, {"blocks": [1, 3, 1], "kernels": [5, 5]}),
    (3_960_906, {"extra_conv": 512}),
    (3_960_906, {"extra_conv": 512, "dropout": [0.2]}),
    (4_121_290, {"extra_conv": 512, "head": [256, 128], "dropout": [0, 0.4, 0.4]}),
    (4_121_290, {"extra_conv": 512, "head": [256, 128], "dropout": [0.4, 0.4, 0.4]}),
    (4_767_442, {"widths": [64, 128, 326], "pool": 4, "head": [512, 256], "dropout": [0, 0.2, 0.2]}),
    (4_779_530, {**FOUR_STAGES, "head": [128]}),
    (4_787_146, {**FOUR_STAGES, "head": [128, 64], "dropout": [0, 0.5, 0.5]}),
]


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("count", "options"), STUDY)
def test_small_resnet_has_the_published_size_and_takes_a_cifar_image(
    count: int, options: dict[str, OptionValue]
) -> None:
    model = build("small-resnet", classes=10, options=options).eval()
    assert parameters(model) == count
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_small_resnet_takes_other_image_sizes_with_as_many_features() -> None:
    model = build("small-resnet", classes=10, options={"widths": [8, 8], "blocks": [1, 1], "pool": 4}).eval()
    for side in (28, 32, 64):
        assert model(torch.randn(1, 3, side, side)).shape == (1, 10)


def test_the_pool_averages_what_it_says() -> None:
    """pool 4 on the 8x8 map of a 32x32 image is average pooling with kernel 4."""
    model = build("small-resnet", classes=10, options={"widths": [4, 4, 4], "blocks": [1, 1, 1], "pool": 4}).eval()
    image = torch.randn(1, 3, 32, 32)
    feature_map = model.stages(model.stem(image))
    assert feature_map.shape == (1, 4, 8, 8)
    expected = model.head(torch.nn.functional.avg_pool2d(feature_map, 4).flatten(1))
    torch.testing.assert_close(model(image), expected)


def test_dropout_stands_before_the_linear_layers_it_was_given_for() -> None:
    options: dict[str, OptionValue] = {"widths": [4], "blocks": [1], "head": [8, 6], "dropout": [0, 0.25, 0.5]}
    head = build("small-resnet", classes=10, options=options).head
    kinds = [(type(layer).__name__, getattr(layer, "p", None)) for layer in head]
    linear = ("Linear", None)
    assert [kind for kind in kinds if kind[0] != "ReLU"] == [
        ("Dropout", 0),
        linear,
        ("Dropout", 0.25),
        linear,
        ("Dropout", 0.5),
        linear,
    ]


def test_a_block_at_stride_one_starts_as_its_input_when_its_body_is_silenced() -> None:
    """The residual connection: with the last BatchNorm at zero, a block is the ReLU of its input."""
    model = build("small-resnet", classes=10, options={"stem": 4, "widths": [4], "blocks": [1]}).eval()
    block = model.stages[0]
    torch.nn.init.zeros_(block.body[-1].weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x.relu())


@pytest.mark.parametrize(("kernels", "strides"), [([3, 3], [2, 1]), ([1, 3, 1], [1, 2, 1]), ([1, 5], [1, 2])])
def test_no_pixel_is_dropped_by_a_strided_one_by_one(kernels: list[int], strides: list[int]) -> None:
    options: dict[str, OptionValue] = {"widths": [4, 8], "blocks": [1, 1], "kernels": kernels}
    body = build("small-resnet", classes=10, options=options).stages[1].body
    assert [layer.stride[0] for layer in body if isinstance(layer, torch.nn.Conv2d)] == strides


def test_custom_resnet_has_the_published_size_and_cost() -> None:
    model = build("custom-resnet", classes=10, options={}).eval()
    assert parameters(model) == 6_573_130
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    multiply_adds = counter.get_total_flops() / 2
    assert round(multiply_adds * 512 / 1e9, 2) == 194.18


def test_the_tiny_networks_are_tiny() -> None:
    assert parameters(build("tiny-resnet", classes=10, options={})) < 300_000
    assert parameters(build("tiny-cnn", classes=10, options={})) < 10_000
