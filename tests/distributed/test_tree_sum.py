"""The tree of sums on one process; tests/launch/test_fixed_parts.py has it on several."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.tree_sum import TreeSum

SIZE = 5


def vector_of(part: int) -> Tensor:
    """Return numbers whose sum depends on the order of additions, float32 [SIZE]."""
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(part)) * 10.0 ** (part % 7)


def tree(values: list[Tensor]) -> Tensor:
    """Add pairs of neighbours, level by level; the last of an odd number moves up alone."""
    while len(values) > 1:
        pairs = [left + right for left, right in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[len(pairs) * 2 :]
    return values[0]


@given(st.integers(1, 40), st.integers(1, 3))
def test_it_adds_neighbours_level_by_level(parts: int, steps: int) -> None:
    """And again in the next step, in which it reuses its vectors."""
    total = TreeSum(parts, Ranks(0, 1, torch.device("cpu"), first_of_node=True), SIZE)
    for step in range(steps):
        for part in range(parts):
            vector = total.take_zeros()
            assert not vector.any()
            total.add(part, vector.add_(vector_of(part + step)))
        assert torch.equal(total.total(), tree([vector_of(part + step) for part in range(parts)]))


def test_few_vectors_are_kept() -> None:
    """A process with many parts holds one vector per level, not one per part."""
    total = TreeSum(64, Ranks(0, 1, torch.device("cpu"), first_of_node=True), SIZE)
    seen = set()
    for part in range(64):
        vector = total.take_zeros()
        seen.add(vector.data_ptr())
        total.add(part, vector)
    assert len(seen) <= 7
