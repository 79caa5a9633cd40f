"""Copies of tensors in the host's memory, which a checkpoint is written from while training changes the tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cifar_dist.distributed.sharded_tensor import full_tensor


class Deal:
    """Deals the tensors of a checkpoint to the processes that write it: each to the one with the fewest bytes so far.

    No process gets more than an even share and the largest tensor. Each asks about the same tensors in the same order.

    Args:
        rank: this process.
        writers: how many processes write, the first ones; the others keep nothing.
    """

    def __init__(self, rank: int, writers: int) -> None:
        self._rank = rank
        self._bytes = [0] * writers

    def deal_next(self, tensor: Tensor) -> bool:
        """Deal the next tensor, a full one; return whether this process has it to write."""
        writer = self._bytes.index(min(self._bytes))
        self._bytes[writer] += tensor.nbytes
        return writer == self._rank


def copy_to_host(tensors: Iterable[tuple[str, Tensor]], deal: Deal | None = None) -> dict[str, Tensor]:
    """Copy tensors to the CPU, contiguous, full ones where each process holds a shard. Collective for shards.

    Copies from a GPU go into pinned memory one after the other, and the host waits for the last one only. Torch keeps
    pinned memory that is freed for the next copies; on a CPU malloc does, see :mod:`cifar_dist.cpu.malloc`.

    Args:
        tensors: by name. One of them at a time is full.
        deal: which of them this process copies; None for all.
    """
    copies, devices = {}, set()
    for name, tensor in tensors:
        devices.add(tensor.device)
        if (copy := _copy(tensor, deal)) is not None:
            copies[name] = copy
    for device in devices:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
    return copies


def _copy(tensor: Tensor, deal: Deal | None) -> Tensor | None:
    full = full_tensor(tensor)
    if deal is not None and not deal.deal_next(full):
        return None
    # Without a wait, torch chooses pinned memory for what comes from a GPU.
    return full.to("cpu", copy=True, non_blocking=True, memory_format=torch.contiguous_format)
