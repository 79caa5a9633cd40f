"""The counts that the four systems published, in their words as options: parameters, multiply-adds, receptive field."""

from __future__ import annotations

import pytest
import torch

from cifar_dist.config import OptionValue
from cifar_dist.models import build, check_fits
from cifar_dist.models.summary import Summary, summarize

Options = dict[str, OptionValue]

FOUR_STAGES: Options = {"widths": [32, 64, 128, 256], "blocks": [3, 4, 4, 3], "pool": 4}
EXTRA: Options = {"extra_conv": 512}
DEEP_HEAD: Options = {"extra_conv": 512, "head": [256, 128]}

EXACT: list[tuple[str, str, int, Options, int]] = [
    # A: the ResNet-34 lab
    ("A, 1000 classes", "resnet34", 1000, {}, 21_797_672),
    ("A, torchvision's", "torchvision:resnet34", 1000, {}, 21_797_672),
    # B: the custom ResNet
    ("B", "custom-resnet", 10, {}, 6_573_130),
    # D: the study under five million parameters; widths 64, 128, 256 where none are named
    ("D, baseline", "small-resnet", 10, {"widths": [64, 128, 256], "blocks": [2, 2, 2]}, 2_777_674),
    ("D, baseline by default", "small-resnet", 10, {}, 2_777_674),
    ("D, four stages", "small-resnet", 10, {**FOUR_STAGES, "blocks": [2, 2, 2, 2]}, 2_809_866),
    ("D, five", "small-resnet", 10, {"widths": [16, 32, 64, 128, 256], "blocks": [2] * 5, "pool": 2}, 2_811_818),
    ("D, blocks 2,3,3", "small-resnet", 10, {"blocks": [2, 3, 3]}, 4_253_770),
    ("D, blocks 3,3,3", "small-resnet", 10, {"blocks": [3, 3, 3]}, 4_327_754),
    ("D, blocks 2,4,3", "small-resnet", 10, {"blocks": [2, 4, 3]}, 4_549_194),
    ("D, blocks 3,5,3", "small-resnet", 10, {"blocks": [3, 5, 3]}, 4_918_602),
    ("D, pool 4, blocks 2,4,3", "small-resnet", 10, {"blocks": [2, 4, 3], "pool": 4}, 4_556_874),
    ("D, pool 4, blocks 3,5,3", "small-resnet", 10, {"blocks": [3, 5, 3], "pool": 4}, 4_926_282),
    ("D, pool 2, blocks 3,5,3", "small-resnet", 10, {"blocks": [3, 5, 3], "pool": 2}, 4_957_002),
    ("D, 1-3-1", "small-resnet", 10, {"kernels": [1, 3, 1], "expansion": 4, "blocks": [3, 3, 3]}, 4_914_250),
    ("D, 1 and 5", "small-resnet", 10, {"kernels": [1, 5], "stem_kernel": 5, "blocks": [2, 3, 2]}, 4_911_178),
    ("D, 5 and 5", "small-resnet", 10, {"kernels": [5, 5], "blocks": [1, 3, 1]}, 4_964_170),
    ("D, extra conv", "small-resnet", 10, EXTRA, 3_960_906),
    ("D, extra conv, dropout", "small-resnet", 10, {**EXTRA, "dropout": [0.2]}, 3_960_906),
    ("D, deep head, dropout 0", "small-resnet", 10, DEEP_HEAD, 4_121_290),
    ("D, deep head, 0.2 twice", "small-resnet", 10, {**DEEP_HEAD, "dropout": [0, 0.2, 0.2]}, 4_121_290),
    ("D, deep head, 0.2 x 3", "small-resnet", 10, {**DEEP_HEAD, "dropout": [0.2] * 3}, 4_121_290),
    ("D, deep head, 0.4 twice", "small-resnet", 10, {**DEEP_HEAD, "dropout": [0, 0.4, 0.4]}, 4_121_290),
    ("D, deep head, 0.4 x 3", "small-resnet", 10, {**DEEP_HEAD, "dropout": [0.4] * 3}, 4_121_290),
    (
        *("D, widths 64,128,326", "small-resnet", 10),
        {"widths": [64, 128, 326], "pool": 4, "head": [512, 256], "dropout": [0, 0.2, 0.2]},
        4_767_442,
    ),
    ("D, best", "small-resnet", 10, {**FOUR_STAGES, "head": [128]}, 4_779_530),
    ("D, best, 128-64", "small-resnet", 10, {**FOUR_STAGES, "head": [128, 64]}, 4_787_146),
    ("D, 128-64, 0.2", "small-resnet", 10, {**FOUR_STAGES, "head": [128, 64], "dropout": [0, 0.2, 0.2]}, 4_787_146),
    ("D, 128-64, 0.5", "small-resnet", 10, {**FOUR_STAGES, "head": [128, 64], "dropout": [0, 0.5, 0.5]}, 4_787_146),
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


def test_the_custom_resnet_sees_the_published_pixels() -> None:
    """81 counts a 2x2 pool as the stride of its convolution; its kernel reaches further: 1 + 2 + 4 pixels."""
    counted = summary("custom-resnet", 10, {})
    assert counted.pools_as_strides == 81
    assert counted.receptive_field == 81 + 1 + 2 + 4
    assert counted.last_convolution == 88 - 3 * 8  # without the pool of 4 at a jump of 8
