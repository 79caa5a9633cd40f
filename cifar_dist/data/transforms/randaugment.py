"""RandAugment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cifar_dist.config.section import require
from cifar_dist.data.transforms import Policy, Samples

if TYPE_CHECKING:
    from cifar_dist.data.operations.policies import Round


@dataclass(frozen=True)
class RandAugment(Policy):
    """Apply a few operations of equal strength, drawn from all (Cubuk et al., arXiv:1909.13719)."""

    name: Literal["randaugment"] = "randaugment"
    operations: int = 2
    """Number of operations to apply."""
    magnitude: int = 9
    """Strength of the operations, a level in 0..bins - 1."""
    bins: int = 31
    """Number of levels."""

    def __post_init__(self) -> None:
        require(0 <= self.operations <= 100, f"operations {self.operations} must be in 0..100")
        require(2 <= self.bins <= 1000, f"bins {self.bins} must be in 2..1000")
        require(0 <= self.magnitude < self.bins, f"magnitude {self.magnitude} must be in 0..{self.bins - 1} (bins - 1)")

    def rounds(self, samples: Samples, height: int, width: int) -> Iterator[Round]:
        from cifar_dist.data.operations.policies import OPERATIONS, apply_sign, auto_augment_magnitudes

        level = auto_augment_magnitudes(self.bins, height, width, samples.ids.device)[:, self.magnitude]
        for place in range(self.operations):
            operation = samples.integers("rand-augment", len(OPERATIONS) - 1, 2 * place)
            negative = samples.uniform("rand-augment", 2 * place + 1) < 0.5
            yield operation, apply_sign(operation, level[operation], negative)
