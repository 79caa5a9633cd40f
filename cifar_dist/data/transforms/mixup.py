"""MixUp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cifar_dist.config.section import require
from cifar_dist.data.transforms import Mixing, Samples

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MixUp(Mixing):
    """Blend a sample and its label with those of another (Zhang et al., arXiv:1710.09412)."""

    name: Literal["mixup"] = "mixup"
    alpha: float = 1.0
    """Parameter of the distribution of the sample's own share, Beta(alpha, alpha)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha > 0, f"alpha {self.alpha} must be above 0; to mix nothing, remove mixup")

    def ratio(self, samples: Samples) -> Tensor:
        """Draw each sample's own share of image and label, float32 [n]."""
        from cifar_dist.data.operations.mixing import beta

        return beta(samples.uniform("mixup"), self.alpha)

    def __call__(self, images: Tensor, partners: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        from cifar_dist.data.operations.mixing import mixup

        ratio = self.ratio(samples)
        return mixup(images, partners, ratio), ratio
