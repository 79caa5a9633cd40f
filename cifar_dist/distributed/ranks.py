"""The processes of a job among themselves: numbers that become one, objects that are gathered, decisions made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cifar_dist.errors import TrainingFailedError, UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Pending:
    """An exchange under way, see :meth:`Ranks.exchange`."""

    values: Tensor
    work: dist.Work | None

    def wait(self) -> list[float]:
        if self.work is not None:
            self.work.wait()
        return [float(value) for value in self.values.tolist()]


class Ranks:
    """A process's place among all processes of the job, once they have joined.

    Attributes:
        rank, processes: its place, and how many there are; rank 0 is the main one.
        device: where this process computes.

    Args:
        first_of_node: whether it is the first process on its machine.
    """

    def __init__(self, rank: int, processes: int, device: torch.device, *, first_of_node: bool) -> None:
        self.rank, self.processes, self.device = rank, processes, device
        self._first_of_node = first_of_node

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def exchange(self, values: Tensor) -> Pending:
        """Start an element-wise maximum over all ranks, to be read a step later so that no device waits for it."""
        if self.processes == 1:
            return Pending(values, None)
        return Pending(values, dist.all_reduce(values, op=dist.ReduceOp.MAX, async_op=True))

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all ranks; changes and returns ``values``."""
        if self.processes > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Rows of all ranks, in rank order: [n, ...] -> [sum of n, ...]; n may differ between ranks."""
        if self.processes == 1:
            return values
        sizes = torch.zeros(self.processes, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(values)
        lengths = [int(n) for n in self.sum(sizes).tolist()]
        padded = values.new_zeros((max(lengths), *values.shape[1:]))
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])

    def gather_objects(self, value: T) -> list[T]:
        """The value of every rank, in rank order. Only for our own plain data: it is pickled between our ranks."""
        if self.processes == 1:
            return [value]
        everyone: list[Any] = [None] * self.processes
        dist.all_gather_object(everyone, value)
        return everyone

    def decide(self, choose: Callable[[], T]) -> T:
        """Run ``choose`` on rank 0 alone and give its result to all; what it raises, all raise.

        The one way to touch the run folder: which name, which checkpoint, whether it can be written.
        """
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = choose()
            except (UserError, TrainingFailedError) as error:
                outcome[1] = error
            except OSError as error:
                outcome[1] = UserError(f"{error.filename or 'the run folder'}: {error.strerror or error}")
        if self.processes > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def together(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank; if it fails on any, all raise that rank's error and none is left waiting.

        For what each process must do for itself with its own disk, such as opening the shards.
        """
        result: T | None = None
        failure: UserError | None = None
        try:
            result = work()
        except UserError as error:
            failure = error
        for first in self.gather_objects(failure):
            if first is not None:
                raise first
        return result  # type: ignore[return-value]

    def one_of_each_node_first(self, work: Callable[[], None]) -> None:
        """:meth:`together`, in two turns: what the first fetches into its node's cache, the others find there."""
        self.together(work if self._first_of_node else lambda: None)
        self.together(lambda: None if self._first_of_node else work())


def share_of(items: Sequence[T], rank: int, processes: int) -> list[T]:
    """Items rank, rank + processes, ...: a dealing of fixed work units to processes."""
    return list(items[rank::processes])
