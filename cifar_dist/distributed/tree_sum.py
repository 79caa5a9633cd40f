"""The sum of one vector for each part of a global batch, in an order that does not depend on the processes.

Floating-point addition is not associative, so the same gradients added in another order give other weights. Here the
parts are the leaves of one fixed binary tree, whichever process holds them::

    level 2            0-3
    level 1       0-1       2-3            2 processes: rank 1 sends 2-3
    level 0      0   1     2   3           4 processes: rank 1 sends 1, rank 3 sends 3, then rank 2 sends 2-3

Node i of level l is the sum of nodes 2i and 2i + 1 of the level below, or node 2i alone at the ragged end. EasyScale
(Li et al., *EasyScale: Elastic Training with Consistent Accuracy on Homogeneous and Heterogeneous GPUs*, SC 2023)
keeps a number of virtual workers in this way while the number of GPUs changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from cifar_dist.data.order import own_parts
from cifar_dist.distributed.ranks import Ranks


class TreeSum:
    """Adds up the vectors of all parts.

    Args:
        parts: number of parts, at least one for each process.
        ranks: the processes, which hold the parts as :func:`~cifar_dist.data.order.own_parts` says.
        size: elements of a vector.
    """

    def __init__(self, parts: int, ranks: Ranks, size: int) -> None:
        self._ranks, self._size = ranks, size
        self._owner = [rank for rank in range(ranks.world_size) for _ in own_parts(parts, rank, ranks.world_size)]
        self._nodes: dict[tuple[int, int], Tensor] = {}  # sums of this process, by level and number
        self._free: list[Tensor] = []

    def take_zeros(self) -> Tensor:
        """A vector of zeros, float32 [size], to be filled and added. It comes from those no longer needed."""
        if not self._free:
            return torch.zeros(self._size, device=self._ranks.device)
        return self._free.pop().zero_()

    def add(self, part: int, vector: Tensor) -> None:
        """Add the vector of a part of this process; sums that are complete keep one vector."""
        level, node = 0, part
        while node % 2 and (below := self._nodes.pop((level, node - 1), None)) is not None:
            self._free.append(vector)
            vector = below.add_(vector)
            level, node = level + 1, node // 2
        self._nodes[level, node] = vector

    def total(self) -> Tensor:
        """The sum over the parts of all processes, on every process, until the next :meth:`take_zeros`. Collective."""
        level, count = 0, len(self._owner)
        while count > 1:
            for left in range(0, count - 1, 2):
                self._join(level, left)
            if count % 2 and (ragged := self._nodes.pop((level, count - 1), None)) is not None:
                self._nodes[level + 1, count // 2] = ragged
            level, count = level + 1, (count + 1) // 2
        total = self._nodes.pop((level, 0), None)
        if total is None:
            total = self.take_zeros()
        if self._ranks.world_size > 1:
            dist.broadcast(total, src=0)
        self._free.append(total)
        return total

    def _join(self, level: int, left: int) -> None:
        """Replace a node and its neighbour by their sum, on the process that holds the first part of the node."""
        owner, giver = self._owner[left << level], self._owner[left + 1 << level]
        right = self._nodes.pop((level, left + 1), None)
        if giver == self._ranks.rank != owner:
            assert right is not None
            _move(dist.isend, _carried(right), owner)
        elif owner == self._ranks.rank and (own := self._nodes.pop((level, left), None)) is not None:
            if right is None:
                right = self.take_zeros()
                received = _carried(right)
                _move(dist.irecv, received, giver)
                right.copy_(received)
            self._nodes[level + 1, left // 2] = own.add_(right)
        if right is not None:
            self._free.append(right)


def _move(direction: Callable[..., dist.Work | None], vector: Tensor, peer: int) -> None:
    """Send a vector, or receive it.

    It is a batch of one: NCCL sends that over the communicator of all ranks, which exists since their first exchange.
    What is in no batch gets a communicator for each pair of ranks, with memory of its own and a warning of torch.
    """
    for work in dist.batch_isend_irecv([dist.P2POp(direction, vector, peer)]):
        work.wait()


def _carried(vector: Tensor) -> Tensor:
    """``vector`` itself, or a copy on the host for gloo, which sends and receives no tensor of a GPU."""
    return vector.cpu() if dist.get_backend() == "gloo" else vector
