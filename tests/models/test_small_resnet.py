"""The small ResNets: what their options do."""

from __future__ import annotations

import pytest
import torch
from support.layers import layer_at
from torch import nn

from cifar_dist.config import OptionValue
from cifar_dist.models import build


def test_small_resnet_takes_other_image_sizes_with_as_many_features() -> None:
    model = build("small-resnet", classes=10, options={"widths": [8, 8], "blocks": [1, 1], "pool": 4}).eval()
    for side in (28, 32, 64):
        assert model(torch.randn(1, 3, side, side)).shape == (1, 10)


def test_the_pool_averages_its_window() -> None:
    """With pool 4, the 8x8 map of a 32x32 image is average-pooled with kernel 4."""
    model = build("small-resnet", classes=10, options={"widths": [4, 4, 4], "blocks": [1, 1, 1], "pool": 4}).eval()
    image = torch.randn(1, 3, 32, 32)
    stem, stages, head = (model.get_submodule(name) for name in ("stem", "stages", "head"))
    feature_map = stages(stem(image))
    assert feature_map.shape == (1, 4, 8, 8)
    expected = head(torch.nn.functional.avg_pool2d(feature_map, 4).flatten(1))
    torch.testing.assert_close(model(image), expected)


def test_dropout_precedes_the_linear_layers_that_it_was_set_for() -> None:
    options: dict[str, OptionValue] = {"widths": [4], "blocks": [1], "head": [8, 6], "dropout": [0, 0.25, 0.5]}
    head = layer_at(build("small-resnet", classes=10, options=options), "head", nn.Sequential)
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
    """With a last BatchNorm of zero, only the residual connection is left: a block is the ReLU of its input."""
    model = build("small-resnet", classes=10, options={"stem": 4, "widths": [4], "blocks": [1]}).eval()
    block = model.get_submodule("stages.0")
    *_, norm = layer_at(block, "body", nn.Sequential)
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x.relu())


@pytest.mark.parametrize(("kernels", "strides"), [([3, 3], [2, 1]), ([1, 3, 1], [1, 2, 1]), ([1, 5], [1, 2])])
def test_no_pixel_is_dropped_by_a_strided_one_by_one(kernels: list[int], strides: list[int]) -> None:
    options: dict[str, OptionValue] = {"widths": [4, 8], "blocks": [1, 1], "kernels": kernels}
    body = layer_at(build("small-resnet", classes=10, options=options), "stages.1.body", nn.Sequential)
    assert [layer.stride[0] for layer in body if isinstance(layer, nn.Conv2d)] == strides


def test_the_tiny_networks_are_tiny() -> None:
    def parameters(name: str) -> int:
        return sum(parameter.numel() for parameter in build(name, classes=10, options={}).parameters())

    assert parameters("tiny-resnet") < 300_000
    assert parameters("tiny-cnn") < 10_000
