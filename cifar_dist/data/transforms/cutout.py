"""Cutout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cifar_dist.config.section import require_at_least
from cifar_dist.data.transforms import Samples, Transform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cutout(Transform):
    """Set a square at a random position to the colour ``augment.mean`` (DeVries and Taylor, arXiv:1708.04552)."""

    planar: ClassVar[bool] = False

    name: Literal["cutout"] = "cutout"
    side: int = 8
    """Side of the square in pixels; its centre is in the image, and it is clipped to the image."""

    def __post_init__(self) -> None:
        require_at_least(self, side=0)

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        import torch

        from cifar_dist.data.operations.boxes import erase

        height, width = images.shape[2:]
        places = samples.bits("cutout", range(2))
        top, left = places[0] % height - self.side // 2, places[1] % width - self.side // 2
        side = torch.full_like(top, self.side)
        return erase(images, torch.stack([top, left, side, side], dim=1), samples.fill)
