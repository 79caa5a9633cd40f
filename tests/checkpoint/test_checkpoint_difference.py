"""How two checkpoints differ: bits decide whether they do, and the largest distance of two elements says how much."""

from __future__ import annotations

import math

import pytest
import torch
from support.small_checkpoint import optimizer
from torch import Tensor

from cifar_dist.checkpoint import Tensors
from cifar_dist.checkpoint.difference import Difference, compare


def difference(first: Tensor, second: Tensor) -> Difference:
    """Compare two checkpoints that have these weights, and else the same."""
    both = (Tensors({"w": weights}, None, optimizer(1)) for weights in (first, second))
    found = {difference.name: difference for difference in compare(*both)}
    assert found.keys() == {"weights/w", "optimizer/momentum_buffer/conv.weight"}
    assert found["optimizer/momentum_buffer/conv.weight"].is_equal
    return found["weights/w"]


@pytest.mark.parametrize("values", [[1.0, -2.0], [math.nan, math.inf, -0.0], []])
def test_equal_bits_are_equal(values: list[float]) -> None:
    found = difference(torch.tensor(values), torch.tensor(values))
    assert (found.is_equal, found.largest) == (True, 0.0)


@pytest.mark.parametrize(
    ("first", "second", "largest"),
    [
        ([1.0, 2.0], [4.0, 1.0], 3.0),
        ([0.0], [-0.0], 0.0),
        ([math.nan, 1.0], [math.nan, 2.5], 1.5),
        ([math.inf, 1.0], [math.inf, 2.5], 1.5),
        ([math.inf], [-math.inf], math.inf),
        ([math.inf], [1.0], math.inf),
        ([math.nan], [1.0], math.inf),
        ([1.0, 2.0], [1.0], math.inf),
    ],
)
def test_the_largest_distance_of_two_elements_is_found(first: list[float], second: list[float], largest: float) -> None:
    found = difference(torch.tensor(first), torch.tensor(second))
    assert (found.is_equal, found.largest) == (False, largest)
    assert (found.first, found.second) == (f"float32 [{len(first)}]", f"float32 [{len(second)}]")


def test_other_types_of_the_same_bits_differ() -> None:
    found = difference(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    assert (found.is_equal, found.largest, found.second) == (False, math.inf, "int32 [2]")
