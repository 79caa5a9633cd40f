"""The order of samples within an epoch: a pure function of (manifest, seed, epoch).

::

    shards of the split   [0 1 2 3 4 5 6]
      permuted            [4 1 6 | 0 3 5 | 2]      blocks of ``block`` shards
      samples permuted within each block           -> the sequence of the epoch
      global batch k      sequence[k * B : (k + 1) * B]
      rank r of R         its micro-batches of that slice

Every sample occurs exactly once per epoch. Ranks enter only in the last line, in :func:`own_parts`, so neither the
sequence nor a global batch can depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_dist.data.randomness import bits, permutation


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, block: int) -> Tensor:
    """Return the sample ids of one epoch in order, int64 [sum(shard_sizes)], each exactly once.

    Args:
        shard_sizes: samples in each shard, in manifest order.
        seed: the run's seed.
        epoch: which pass over the data, from 0.
        block: number of shards whose samples are mixed with each other, at least 1.
    """
    sizes = torch.as_tensor(shard_sizes, dtype=torch.int64)
    ids = torch.arange(int(sizes.sum()))
    position = torch.argsort(permutation(seed, epoch, len(sizes), "shards"))  # shard -> its position in the epoch
    block_of_sample = (position // block).repeat_interleave(sizes)
    by_hash = torch.argsort(bits(seed, epoch, ids, "samples"), stable=True)
    return by_hash[torch.argsort(block_of_sample[by_hash], stable=True)]


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the optimizer steps per epoch; the last batch may be smaller."""
    return -(-samples // batch_size)


def global_batch(order: Tensor, step: int, batch_size: int) -> Tensor:
    """Return the sample ids of global batch ``step`` within an epoch, int64 [<= batch_size]."""
    return order[step * batch_size : (step + 1) * batch_size]


@dataclass(frozen=True)
class MicroBatch:
    """One of the equal parts of a global batch.

    Attributes:
        ids: int64 [n], the same n in every part; padded with repeated ids if the global batch does not divide evenly.
        weight: float32 [n], 1 for a sample of the global batch and 0 for padding.
        before: int64 [1], the sample that precedes the first one in the global batch, cyclically.
    """

    ids: Tensor
    weight: Tensor
    before: Tensor


def own_parts(parts: int, rank: int, world_size: int) -> range:
    """Return which of the ``parts`` of a global batch rank ``rank`` works through: neighbours, dealt evenly."""
    return range(parts * rank // world_size, parts * (rank + 1) // world_size)


def micro_batches(batch: Tensor, own: range, parts: int) -> list[MicroBatch]:
    """Divide a global batch into ``parts`` micro-batches of equal length, and return those numbered ``own``.

    A batch that does not divide evenly is padded with samples of weight 0, which do not count in the loss.

    Args:
        batch: int64 [n], sample ids of one global batch.
        own: see :func:`own_parts`.
        parts: micro-batches in the global batch, over all ranks.
    """
    size = -(-len(batch) // parts)
    position = torch.arange(size * parts)
    padded = batch[position % len(batch)]
    weight = (position < len(batch)).to(torch.float32)
    slices = [slice(part * size, (part + 1) * size) for part in own]
    return [MicroBatch(padded[part], weight[part], batch[[(part.start - 1) % len(batch)]]) for part in slices]
