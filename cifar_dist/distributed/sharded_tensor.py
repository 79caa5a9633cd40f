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


def own_shard(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``, which changes with it in place; itself where it is not sharded.

    Without gradients. A change of a shard of ZeRO-3 requires :func:`forget_gathered`. What pads the last shards, where
    the processes do not divide a parameter, is left out: DeepSpeed never sets it, so it may be nan.
    """
    if hasattr(tensor, "ds_tensor"):
        partition: Tensor = tensor.ds_tensor
        begin = partition.numel() * tensor.ds_zero_partition_rank  # type: ignore[attr-defined]
        return partition[: max(0, tensor.ds_numel - begin)]  # type: ignore[attr-defined]
    own = tensor.detach()
    return own.to_local() if hasattr(own, "to_local") else own


def shard_of(full: Tensor, like: Tensor) -> Tensor:
    """A copy of what :func:`own_shard` of ``like`` would be if it had the values of ``full``. Collective for shards."""
    if hasattr(like, "ds_tensor"):
        partition = torch.zeros_like(like.ds_tensor)
        fill_partition(partition, full, like)
        return partition[: own_shard(like).numel()]
    return own_shard(shard_like(full, like))


def fill_partition(partition: Tensor, full: Tensor, like: Tensor) -> None:
    """Copy to a flat ``partition`` what this process holds of ``full``, which ZeRO-3 shards as it does ``like``.

    The partition of the last process may be longer.
    """
    begin = partition.numel() * like.ds_zero_partition_rank  # type: ignore[attr-defined]
    own = full.flatten()[begin : begin + partition.numel()]
    partition[: own.numel()].copy_(own)


def forget_gathered(tensor: Tensor) -> None:
    """Free the full copy that ZeRO-3 may keep of ``tensor``: it is gathered again from the shards, as they are now."""
    if hasattr(tensor, "ds_tensor"):
        tensor.partition()  # type: ignore[attr-defined]
        if torch.cuda.is_initialized():  # it gathers in a stream of its own, which does not wait for what wrote them
            torch.cuda.current_stream().synchronize()


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """A copy of ``value``, equal on all processes, on the device of ``like`` and sharded as ``like`` is.

    One that is not sharded has the memory format of ``like``: torch updates tensors of one format together.
    """
    if not hasattr(like, "full_tensor"):
        return torch.empty_like(like, dtype=value.dtype).copy_(value)

    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
