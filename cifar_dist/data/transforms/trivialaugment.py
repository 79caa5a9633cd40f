"""TrivialAugment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cifar_dist.config.section import require
from cifar_dist.data.transforms import Policy, Samples

if TYPE_CHECKING:
    from cifar_dist.data.operations.policies import Round


@dataclass(frozen=True)
class TrivialAugment(Policy):
    """Apply one operation at a random level of the wide space (Müller and Hutter, arXiv:2103.10158)."""

    name: Literal["trivialaugment"] = "trivialaugment"
    bins: int = 31
    """Number of levels."""

    def __post_init__(self) -> None:
        require(2 <= self.bins <= 1000, f"bins {self.bins} must be in 2..1000")

    def rounds(self, samples: Samples, height: int, width: int) -> Iterator[Round]:
        from cifar_dist.data.operations.policies import OPERATIONS, apply_sign, magnitudes

        operation = samples.integers("trivial-augment", len(OPERATIONS) - 1, 0)
        level = samples.integers("trivial-augment", self.bins, 1)
        table = magnitudes(self.bins, 0.99, (32.0, 32.0), 135.0, 0.99, 6, samples.ids.device)
        yield operation, apply_sign(operation, table[operation, level], samples.uniform("trivial-augment", 2) < 0.5)
