"""Which sample comes when: a pure function of (manifest, seed, epoch).

::

    shards of the split   [0 1 2 3 4 5 6]
      permuted            [4 1 6 | 0 3 5 | 2]      blocks of ``block`` shards
      samples permuted within each block           -> the sequence of the epoch
      global batch k      sequence[k * B : (k + 1) * B]
      rank r of R         its share of that slice

Every sample comes exactly once per epoch. No argument below is a rank or a worker until the very last line, and
so neither the sequence nor a batch can depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_dist.data.randomness import bits, permutation


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, block: int) -> Tensor:
    """The sample ids of one epoch, int64 [sum(shard_sizes)], each exactly once.

    Args:
        shard_sizes: samples of each shard, in manifest order.
        seed: the run's seed.
        epoch: which pass over the data.
        block: shards whose samples are mixed with each other, at least 1. A reader needs that many open.
    """
    sizes = torch.as_tensor(shard_sizes, dtype=torch.int64)
    ids = torch.arange(int(sizes.sum()))
    place = torch.argsort(permutation(seed, epoch, len(sizes), "shards"))  # shard -> its place in the epoch
    block_of_sample = (place // block).repeat_interleave(sizes)
    by_hash = torch.argsort(bits(seed, epoch, ids, "samples"), stable=True)
    return by_hash[torch.argsort(block_of_sample[by_hash], stable=True)]


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Optimizer steps per epoch; the last batch holds what is left."""
    return -(-samples // batch_size)


def global_batch(order: Tensor, step: int, batch_size: int) -> Tensor:
    """Ids of global batch ``step`` of the epoch with this order: int64 [<= batch_size]."""
    return order[step * batch_size : (step + 1) * batch_size]


@dataclass(frozen=True)
class Share:
    """One process's micro-batch.

    Attributes:
        ids: int64 [n], the same n on every process. Padded by repeating ids where the batch does not divide evenly.
        weight: float32 [n], 1 for a sample of the batch and 0 for padding.
        before: int64 [1], the sample before the first one in the global batch; its last sample precedes its first.
    """

    ids: Tensor
    weight: Tensor
    before: Tensor


def shares(batch: Tensor, rank: int, world_size: int, accumulate: int) -> list[Share]:
    """Split a global batch into rank ``rank``'s micro-batches, one :class:`Share` each.

    All ranks receive micro-batches of equal length, so that none waits for a peer that has nothing to do; a batch that
    does not divide evenly is padded with samples of weight 0, which the loss ignores.
    """
    parts = world_size * accumulate
    size = -(-len(batch) // parts)
    position = torch.arange(size * parts)
    padded = batch[position % len(batch)]
    weight = (position < len(batch)).to(torch.float32)
    cuts = [slice(i * size, (i + 1) * size) for i in range(rank * accumulate, (rank + 1) * accumulate)]
    return [Share(padded[cut], weight[cut], batch[[(cut.start - 1) % len(batch)]]) for cut in cuts]
