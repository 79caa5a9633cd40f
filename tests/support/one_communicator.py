"""A process group over gloo that sends and receives as NCCL does: over the communicator of all ranks in a batch only.

What is in no batch would get a communicator for each pair of ranks from NCCL. Here it fails.
"""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as c10d

NAME = "one_communicator"


class _OneCommunicator(c10d.Backend):
    """A backend with NCCL's batches: sends and receives begin one, and its end returns what to wait for."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._batch: list[dist.Work] | None = None

    @property
    def supports_coalescing(self) -> bool:
        return True

    def getBackendName(self) -> str:
        return NAME

    def start_coalescing(self) -> None:
        self._batch = []

    def end_coalescing(self) -> dist.Work:
        assert self._batch is not None
        (work,), self._batch = self._batch, None
        return work

    def send(self, tensors: list[Tensor], rank: int, tag: int) -> dist.Work:
        return self._add(self._gloo.send(tensors, rank, tag))  # type: ignore[attr-defined]  # its stub lacks it

    def recv(self, tensors: list[Tensor], rank: int, tag: int) -> dist.Work:
        return self._add(self._gloo.recv(tensors, rank, tag))  # type: ignore[attr-defined]

    def broadcast(self, tensors: list[Tensor], options: dist.BroadcastOptions) -> dist.Work:
        assert self._batch is None
        work: dist.Work = self._gloo.broadcast(tensors, options)  # type: ignore[attr-defined]
        return work

    def _add(self, work: dist.Work) -> dist.Work:
        assert self._batch is not None, "NCCL would create a communicator for this pair of ranks"
        self._batch.append(work)
        return work


dist.Backend.register_backend(NAME, _OneCommunicator, devices=["cpu"])
