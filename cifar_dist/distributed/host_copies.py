"""Copies of tensors in the host's memory, which a checkpoint is written from while training changes the tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cifar_dist.distributed.sharded_tensor import full_tensor


def copy_to_host(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, contiguous, full ones where each process holds a shard. Collective for shards.

    Copies from a GPU go into pinned memory one after the other, and the host waits for the last one only. Torch keeps
    pinned memory that is freed for the next copies; on a CPU malloc does, see :mod:`cifar_dist.cpu.malloc`.
    """
    copies, devices = {}, set()
    for name, tensor in tensors:
        devices.add(tensor.device)
        full = full_tensor(tensor)
        # Without a wait, torch chooses pinned memory for what comes from a GPU.
        copies[name] = full.to("cpu", copy=True, non_blocking=True, memory_format=torch.contiguous_format)
    for device in devices:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
    return copies
