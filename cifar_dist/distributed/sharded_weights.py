"""The weights of a network of which each process holds shards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cifar_dist.distributed.sharded_tensor import forget_gathered, full_shape, own_shard, shard_of
from cifar_dist.optim.held_weights import HeldWeights


class ShardedWeights(HeldWeights):
    """Of FSDP or ZeRO-3. Buffers are held by every process."""

    def tensors(self) -> dict[str, Tensor]:
        return {name: own_shard(value) for name, value in self._state().items()}

    def shapes(self) -> dict[str, torch.Size]:
        return {name: full_shape(value) for name, value in self._state().items()}

    def take(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Collective."""
        return {name: shard_of(full[name], like=value) for name, value in self._state().items()}

    def put(self, values: Mapping[str, Tensor]) -> None:
        super().put(values)
        for value in self._state().values():
            forget_gathered(value)
