"""The processes of a job among themselves: sums, gathered objects, and work that one or all of them do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cifar_dist.errors import StorageError, TrainingFailedError, UserError, blame

T = TypeVar("T")


@dataclass(frozen=True)
class PendingValues:
    """Numbers on their way to the host; see :meth:`Ranks.start_maximum` and :meth:`Ranks.start_reading`."""

    values: Tensor
    work: dist.Work | None = None
    copied: torch.cuda.Event | None = None

    def wait(self) -> Tensor:
        """Return the numbers, on the host."""
        if self.work is not None:
            self.work.wait()
        if self.copied is not None:
            self.copied.synchronize()
        return self.values

    def arrived(self) -> bool:
        """Whether :meth:`wait` returns at once."""
        return (self.work is None or self.work.is_completed()) and (self.copied is None or self.copied.query())


class Ranks:
    """A process among all processes of the job, once they have joined.

    Attributes:
        rank, world_size: of this process; rank 0 is the main one.
        device: where this process computes.
        first_of_node: whether it is the first process on its machine.
        has_other_groups: whether they also exchange over other process groups than the default one.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        device: torch.device,
        *,
        first_of_node: bool,
        has_other_groups: bool = False,
    ) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self.first_of_node, self.has_other_groups = first_of_node, has_other_groups

    @cached_property
    def _reading(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def start_maximum(self, values: Tensor) -> PendingValues:
        """Start an element-wise maximum over all ranks. It is read a step later, so that no device waits for it."""
        if self.world_size == 1:
            return self.start_reading(values)
        work = dist.all_reduce(values, op=dist.ReduceOp.MAX, async_op=True)
        if values.device.type == "cpu":
            return PendingValues(values, work)
        if self.has_other_groups:
            work.wait()  # the next step, too: exchanges of two groups at once may block each other in NCCL
        with torch.cuda.stream(self._reading):
            work.wait()  # with NCCL, this stream waits, and neither the host nor the stream of the next step
            pending = self.start_reading(values)
        values.record_stream(self._reading)  # or their memory could be reused before
        return pending

    def start_reading(self, values: Tensor) -> PendingValues:
        """Start copying ``values`` to the host, behind what the device has been given to do so far.

        A plain copy would wait for all of that, and the device would then wait for its next work.
        """
        if values.device.type == "cpu":
            return PendingValues(values)
        on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        on_host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return PendingValues(on_host, copied=copied)

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all ranks; changes and returns ``values``."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Rows of all ranks, in rank order: [n, ...] -> [sum of n, ...]; n may differ between ranks."""
        if self.world_size == 1:
            return values
        sizes = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(values)
        lengths = [int(n) for n in self.sum(sizes).tolist()]
        padded = values.new_zeros((max(lengths), *values.shape[1:]))
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])

    def gather_objects(self, value: T) -> list[T]:
        """The value of every rank, in rank order. Only for plain data of our own: it is pickled between our ranks."""
        if self.world_size == 1:
            return [value]
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, value)
        return everyone

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0 alone and return its result on every rank; what it raises, every rank raises.

        The only way to change the run folder or to decide something for all ranks, such as which checkpoint to load.
        """
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except (UserError, TrainingFailedError, OSError) as error:
                outcome[1] = _shared(error)
        if self.world_size > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank; if it fails on one, every rank raises that rank's error and none is left waiting.

        For what each process does with its own disk, such as opening the shards.
        """
        result: T | None = None
        failure: UserError | TrainingFailedError | None = None
        try:
            result = work()
        except (UserError, TrainingFailedError, OSError) as error:
            failure = _shared(error)
        for first in self.gather_objects(failure):
            if first is not None:
                raise first
        return result  # type: ignore[return-value]

    def run_once_per_node_first(self, work: Callable[[], object]) -> None:
        """:meth:`run_on_all` in two turns: what a node's first process puts into a cache, its others find there."""
        self.run_on_all(work if self.first_of_node else lambda: None)
        self.run_on_all(lambda: None if self.first_of_node else work())


def _shared(error: UserError | TrainingFailedError | OSError) -> UserError | TrainingFailedError:
    """Return an error as all ranks raise it. What caused it does not travel between ranks, so it is blamed here."""
    shared: UserError | TrainingFailedError
    if isinstance(error, OSError):
        shared = StorageError.of(error, "the run folder")
    else:
        shared = blame(error) if isinstance(error, UserError) else error
    shared.is_shared = True
    return shared
