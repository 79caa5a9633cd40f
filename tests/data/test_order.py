"""The order of samples: each once, a function of its arguments alone, distributed to all processes without loss."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_dist.data.order import epoch_order, global_batch, micro_batches, own_parts, steps_per_epoch

SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
SEEDS = st.integers(0, 2**31 - 1)
EPOCHS = st.integers(0, 1000)


def test_the_order_of_an_epoch_has_not_changed() -> None:
    """Frozen: a change would alter every run that anyone has trained."""
    assert epoch_order([3, 3, 3], seed=1, epoch=2, block=2).tolist() == [4, 3, 7, 5, 6, 8, 0, 2, 1]


@settings(deadline=None)
@given(SHARDS, SEEDS, EPOCHS, st.integers(1, 14))
def test_every_sample_occurs_once_and_the_order_is_repeatable(
    sizes: list[int], seed: int, epoch: int, block: int
) -> None:
    order = epoch_order(sizes, seed, epoch, block)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    torch.manual_seed(epoch)
    torch.rand(seed % 7)  # numbers drawn elsewhere have no influence
    assert torch.equal(epoch_order(sizes, seed, epoch, block), order)


@settings(deadline=None)
@given(SHARDS, SEEDS, EPOCHS, st.integers(1, 14))
def test_only_the_shards_of_a_block_are_open_at_once(sizes: list[int], seed: int, epoch: int, block: int) -> None:
    shard_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    come = shard_of[epoch_order(sizes, seed, epoch, block)].tolist()
    finished: set[int] = set()
    while come:
        opened = set(come[: sum(sizes[shard] for shard in list(dict.fromkeys(come))[:block])])
        assert len(opened) <= block
        assert not opened & finished, "a shard that was done with comes again"
        count = sum(sizes[shard] for shard in opened)
        assert sorted(come[:count]) == sorted(shard for shard in opened for _ in range(sizes[shard]))
        come, finished = come[count:], finished | opened


def test_epochs_seeds_and_blocks_differ() -> None:
    sizes = [25] * 8
    orders = [epoch_order(sizes, *arguments) for arguments in ((0, 0, 8), (0, 1, 8), (1, 0, 8), (0, 0, 2), (0, 0, 1))]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).float().mean() < 0.1


def test_the_shards_are_read_in_a_different_order_each_epoch() -> None:
    sizes = [5] * 6
    shard_of = torch.arange(6).repeat_interleave(5)
    first = {int(shard_of[epoch_order(sizes, 0, epoch, 1)[0]]) for epoch in range(60)}
    assert first == set(range(6))


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 64))
def test_the_batches_of_an_epoch_are_its_samples(samples: int, batch_size: int) -> None:
    order = epoch_order([samples], 0, 0, 1)
    batches = [global_batch(order, step, batch_size) for step in range(steps_per_epoch(samples, batch_size))]
    assert torch.equal(torch.cat(batches), order)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch_size


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 36))
def test_micro_batches_are_the_batch_on_any_number_of_processes(size: int, processes: int, more: int) -> None:
    """Weighted, they are exactly the samples of the batch, each once; padding repeats samples with weight 0."""
    batch = epoch_order([1000], 0, 0, 1)[:size]
    parts = processes + more
    by_rank = [micro_batches(batch, own_parts(parts, rank, processes), parts) for rank in range(processes)]
    counts = [len(of_rank) for of_rank in by_rank]
    assert max(counts) - min(counts) <= 1, "no rank has much more to do than another"
    flat = [part for of_rank in by_rank for part in of_rank]
    assert len({len(part.ids) for part in flat}) == 1, "and none because of a longer part"
    assert all(len(part.ids) == len(part.weight) and part.weight.dtype == torch.float32 for part in flat)

    ids, weight = torch.cat([part.ids for part in flat]), torch.cat([part.weight for part in flat])
    assert set(weight.tolist()) <= {0.0, 1.0}
    assert sorted(ids[weight == 1].tolist()) == sorted(batch.tolist())
    assert set(ids[weight == 0].tolist()) <= set(batch.tolist())
    assert len(ids) - size < parts, "no more padding than division makes necessary"

    partners = torch.cat([torch.cat([part.before, part.ids[:-1]]) for part in flat])
    pairs = sorted(zip(ids[weight == 1].tolist(), partners[weight == 1].tolist(), strict=True))
    assert pairs == sorted(zip(batch.tolist(), batch.roll(1).tolist(), strict=True)), "the one before in the batch"
