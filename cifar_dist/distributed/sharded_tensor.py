"""Tensors of which each process holds a shard, and the way to full tensors and back.

FSDP shards parameters as torch's DTensor. DeepSpeed's ZeRO-3 leaves an empty parameter, which has ``ds_`` attributes.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor that ``tensor`` is a shard of; itself where it is not sharded. Collective for shards.

    Without gradients.
    """
    if hasattr(tensor, "ds_shape"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([tensor]):
            return tensor.detach().clone()
    if hasattr(tensor, "full_tensor"):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor.detach()


def full_shape(tensor: Tensor) -> torch.Size:
    """The shape of :func:`full_tensor`."""
    shape: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return shape


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """A copy of ``value``, equal on all processes, on the device of ``like`` and sharded as ``like`` is.

    One that is not sharded has the memory format of ``like``: torch updates tensors of one format together.
    """
    if not hasattr(like, "full_tensor"):
        return torch.empty_like(like, dtype=value.dtype).copy_(value)

    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
