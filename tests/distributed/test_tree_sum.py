"""The tree of sums, on one process and on several; tests/launch/test_fixed_parts.py has it in runs."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from support import forked_ranks, one_communicator
from torch import Tensor

from cifar_dist.data.order import own_parts
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


@pytest.mark.parametrize("processes", [2, 4, 8])
@pytest.mark.parametrize("backend", ["gloo", one_communicator.NAME])
def test_several_processes_get_the_bits_of_one(processes: int, backend: str) -> None:
    """NCCL creates a communicator for each pair of ranks that exchange otherwise than in a batch, and torch warns."""

    def rank() -> None:
        dist.init_process_group(backend)
        ranks = Ranks(dist.get_rank(), processes, torch.device("cpu"), first_of_node=True)
        for parts in (8, 11):
            total = TreeSum(parts, ranks, SIZE)
            for step in range(2):
                for part in own_parts(parts, ranks.rank, processes):
                    total.add(part, total.take_zeros().add_(vector_of(part + step)))
                assert torch.equal(total.total(), tree([vector_of(part + step) for part in range(parts)]))
        dist.destroy_process_group()

    forked_ranks.run(processes, rank)
