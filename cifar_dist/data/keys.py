"""The keys of random draws as the input of a function that is compiled for all epochs.

A draw's key depends on seed, epoch, purpose and number (:func:`cifar_dist.data.randomness.key`), and not on the
samples. Compiled into a function, the key of an epoch would compile it anew in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from cifar_dist.data.randomness import key

Draw = tuple[str, int | range, bool]
"""Purpose, number or numbers, and whether it is the same in all epochs."""


class Keys(Protocol):
    """The keys of the draws of an epoch."""

    def __call__(self, purpose: str, draw: int | range) -> Tensor:
        """Return a draw's key, int64 [], or the keys of several, [len(draw)]."""

    def of_all_epochs(self) -> Self:
        """Return the keys of the draws that do not depend on the epoch."""


@dataclass(frozen=True)
class RecordedKeys:
    """Keys of an epoch, which note what is drawn.

    Attributes:
        seed: the run's seed.
        device: of the keys.
        epoch: whose keys they are.
        draws: what was drawn so far, in order.
    """

    seed: int
    device: torch.device
    epoch: int = 0
    draws: list[Draw] = field(default_factory=list)
    fixed: bool = False

    def __call__(self, purpose: str, draw: int | range) -> Tensor:
        if (purpose, draw, self.fixed) not in self.draws:
            self.draws.append((purpose, draw, self.fixed))
        epoch = 0 if self.fixed else self.epoch
        return torch.tensor(_values(self.seed, epoch, purpose, draw)).view(_shape(draw)).to(self.device)

    def of_all_epochs(self) -> Self:
        return replace(self, fixed=True)


@dataclass(frozen=True)
class TabledKeys:
    """Keys that are read from one tensor.

    Attributes:
        draws: what the table has.
        table: int64 [n], as :func:`key_table` makes it.
        others: the keys of all other draws; None in a function that is compiled, which cannot have them.
    """

    draws: Sequence[Draw]
    table: Tensor
    others: RecordedKeys | None = None
    fixed: bool = False

    def __call__(self, purpose: str, draw: int | range) -> Tensor:
        if self.others is not None and (purpose, draw, self.fixed) not in self.draws:
            return self.others(purpose, draw)
        place = self.draws.index((purpose, draw, self.fixed))
        first = sum(_count(before) for _, before, _ in self.draws[:place])
        return self.table[first : first + _count(draw)].view(_shape(draw))

    def of_all_epochs(self) -> Self:
        return replace(self, others=self.others and self.others.of_all_epochs(), fixed=True)


def key_table(draws: Sequence[Draw], seed: int, epoch: int) -> Tensor:
    """Return the keys of ``draws`` in an epoch, int64 [n], on the CPU."""
    return torch.tensor([v for name, draw, fixed in draws for v in _values(seed, 0 if fixed else epoch, name, draw)])


def _values(seed: int, epoch: int, purpose: str, draw: int | range) -> list[int]:
    return [key(seed, epoch, purpose, number) for number in ([draw] if isinstance(draw, int) else draw)]


def _count(draw: int | range) -> int:
    return 1 if isinstance(draw, int) else len(draw)


def _shape(draw: int | range) -> tuple[int, ...]:
    return () if isinstance(draw, int) else (len(draw),)
