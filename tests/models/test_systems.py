"""The figures that the four source systems published: parameters, multiply-adds, receptive field.

docs/make_sources.py counts the parameters of every shipped recipe, and tests/docs runs it.
"""

from __future__ import annotations

import pytest
import torch

from cifar_dist.config import OptionValue
from cifar_dist.models import build, check_fits
from cifar_dist.models.summary import Summary, summarize

Options = dict[str, OptionValue]

EXACT: list[tuple[str, str, int, Options, int]] = [
    # A: the ResNet-34 lab
    ("A, 1000 classes", "resnet34", 1000, {}, 21_797_672),
    ("A, torchvision's", "torchvision:resnet34", 1000, {}, 21_797_672),
    # B: the custom ResNet
    ("B", "custom-resnet", 10, {}, 6_573_130),
    ("D, baseline by default", "small-resnet", 10, {}, 2_777_674),
]

ABOUT: list[tuple[str, Options, float]] = [
    ("C, squeeze-and-excitation", {}, 2.8),
    ("C, stochastic depth", {"reduction": 4, "stochastic_depth": 0.2}, 2.9),
]


def summary(model: str, classes: int, options: Options, *, batch: int = 1) -> Summary:
    with torch.device("meta"):
        network = build(model, classes=classes, options=options)
    check_fits(network, model, shape=(32, 32, 3), classes=classes)
    return summarize(network, (32, 32, 3), batch)


@pytest.mark.parametrize(
    ("model", "classes", "options", "count"), [row[1:] for row in EXACT], ids=[r[0] for r in EXACT]
)
def test_the_network_has_exactly_the_published_parameters(
    model: str, classes: int, options: Options, count: int
) -> None:
    counted = summary(model, classes, options)
    assert counted.parameters == count
    assert sum(layer.parameters for layer in counted.layers) == count


@pytest.mark.parametrize(("options", "millions"), [row[1:] for row in ABOUT], ids=[row[0] for row in ABOUT])
def test_the_network_has_about_the_published_parameters(options: Options, millions: float) -> None:
    assert round(summary("se-resnet", 10, options).parameters / 1e6, 1) == millions


def test_the_custom_resnet_costs_the_published_multiply_adds() -> None:
    assert round(summary("custom-resnet", 10, {}, batch=512).multiply_adds / 1e9, 2) == 194.18


def test_blocks_of_the_custom_resnet_are_options() -> None:
    pair = {128: 2 * (9 * 128**2 + 2 * 128), 256: 2 * (9 * 256**2 + 2 * 256), 512: 2 * (9 * 512**2 + 2 * 512)}
    whole = 6_573_130
    for pairs, count in (
        ([0, 0, 0], whole - pair[128] - pair[512]),
        ([1, 1, 1], whole + pair[256]),
        ([0, 2, 1], whole - pair[128] + 2 * pair[256]),
    ):
        assert summary("custom-resnet", 10, {"pairs": pairs}).parameters == count
    network = build("custom-resnet", classes=10, options={"dropout": 0.5})
    assert sum(type(layer).__name__ == "Dropout" for layer in network.modules()) == 8
    assert network.state_dict().keys() == build("custom-resnet", classes=10, options={}).state_dict().keys()


def test_the_custom_resnet_sees_the_published_pixels() -> None:
    """81 counts a 2x2 pool as the stride of its convolution; its kernel reaches further: 1 + 2 + 4 pixels."""
    counted = summary("custom-resnet", 10, {})
    assert counted.pools_as_strides == 81
    assert counted.receptive_field == 81 + 1 + 2 + 4
    assert counted.last_convolution == 88 - 3 * 8  # without the pool of 4 at a jump of 8
