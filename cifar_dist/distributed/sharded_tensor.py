"""Tensors of which each process holds a shard (torch's DTensor), and the way to full tensors and back."""

from __future__ import annotations

import torch
from torch import Tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor that ``tensor`` is a shard of; itself where it is not sharded. Collective for shards."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    full: Tensor = tensor.full_tensor()
    return full


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """A copy of ``value``, equal on all processes, on the device of ``like`` and sharded as ``like`` is.

    One that is not sharded has the memory format of ``like``: torch updates tensors of one format together.
    """
    if not hasattr(like, "full_tensor"):
        return torch.empty_like(like, dtype=value.dtype).copy_(value)

    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
