"""Wide residual networks: the paper's sizes, depth and dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cifar_dist.config import OptionValue
from cifar_dist.errors import UserError
from cifar_dist.models import build


def wide(name: str = "wrn-16-8", **options: OptionValue) -> nn.Module:
    return build(name, classes=10, options=options)


def by_definition(depth: int, width: int) -> int:
    """Count parameters from the paper's table 1, for 10 classes of 3-channel images."""
    count, inputs = 3 * 16 * 9, 16
    for outputs in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            count += 2 * inputs + inputs * outputs * 9 + 2 * outputs + outputs * outputs * 9
            count += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    return count + 2 * inputs + inputs * 10 + 10


@pytest.mark.parametrize(
    ("name", "options", "depth", "width", "published"),
    [
        ("wrn-28-10", {}, 28, 10, 36_479_194),
        ("wrn-16-8", {}, 16, 8, 10_961_370),
        ("wrn-16-8", {"depth": 40, "width": 4}, 40, 4, 8_949_210),
        ("wrn-28-10", {"depth": 10, "width": 1}, 10, 1, None),  # one wide: the first stage needs no projection
    ],
)
def test_parameters_and_depth_are_those_of_the_paper(
    name: str, options: dict[str, OptionValue], depth: int, width: int, published: int | None
) -> None:
    with torch.device("meta"):
        model = wide(name, **options)
    count = sum(p.numel() for p in model.parameters())
    assert count == by_definition(depth, width)
    assert count == published or published is None
    # What the paper calls depth: the convolutions, those of the three projections too.
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == (depth if width > 1 else depth - 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": 27}, "depth 27 is not 6 n + 4; use 22 or 28"),
        ({"depth": 4}, "model.options.depth of wrn-16-8 is 4"),
        ({"width": 0}, "model.options.width of wrn-16-8 is 0"),
        ({"dropout": 1.0}, "less than 1"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, OptionValue], says: str) -> None:
    with pytest.raises(UserError) as caught:
        wide("wrn-16-8", **options)
    assert says in str(caught.value)


def test_dropout_lies_between_the_convolutions_of_each_block() -> None:
    torch.manual_seed(0)
    model = wide(depth=10, width=1, dropout=0.5)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.5] * 3
    block = model.get_submodule("stages.0.0").train()
    seen: dict[str, torch.Tensor] = {}
    block.get_submodule("norm2").register_forward_hook(lambda m, inputs, output: seen.update(active=output.relu()))
    block.get_submodule("conv2").register_forward_hook(lambda m, inputs, output: seen.update(given=inputs[0]))
    block(torch.randn(2, 16, 8, 8))
    dropped = (seen["given"] == 0) & (seen["active"] > 0)
    assert 0.4 < dropped.sum() / (seen["active"] > 0).sum() < 0.6
    torch.testing.assert_close(seen["given"][~dropped], 2 * seen["active"][~dropped])
