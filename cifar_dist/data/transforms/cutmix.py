"""CutMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cifar_dist.config.section import require
from cifar_dist.data.transforms import Mixing, Samples

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CutMix(Mixing):
    """Replace a rectangle of a sample by another's, and mix labels in proportion (Yun et al., arXiv:1905.04899)."""

    name: Literal["cutmix"] = "cutmix"
    alpha: float = 1.0
    """Parameter of the distribution of the sample's own share, Beta(alpha, alpha)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha > 0, f"alpha {self.alpha} must be above 0; to mix nothing, remove cutmix")

    def boxes(self, samples: Samples, height: int, width: int) -> Tensor:
        """Draw the boxes that the partners fill, int64 [n, 4]: top, left, height, width.

        A box has the image's aspect ratio and a uniformly drawn centre, and is clipped to the image.
        """
        import torch

        from cifar_dist.data.operations.mixing import beta

        # In float64: square roots in float32 differ between processors, and decide where a box ends.
        reach = 0.5 * (1 - beta(samples.uniform("cutmix"), self.alpha).to(torch.float64)).sqrt()
        edges = []
        for side, draw in zip((height, width), samples.bits("cutmix", range(1, 3)).unbind(), strict=True):
            middle = draw % side
            half = (reach * side).to(torch.int64)
            edges.append(((middle - half).clamp(min=0), (middle + half).clamp(max=side)))
        (top, bottom), (left, right) = edges
        return torch.stack([top, left, bottom - top, right - left], dim=1)

    def __call__(self, images: Tensor, partners: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        import torch

        from cifar_dist.data.operations.constants import divide
        from cifar_dist.data.operations.mixing import cutmix

        height, width = images.shape[2:]
        boxes = self.boxes(samples, height, width)
        taken = (boxes[:, 2] * boxes[:, 3]).to(torch.float32)
        return cutmix(images, partners, boxes), 1 - divide(taken, height * width)
