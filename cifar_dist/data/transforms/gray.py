"""Random grayscale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cifar_dist.config.section import require_probability
from cifar_dist.data.transforms import Samples, Transform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Gray(Transform):
    """Convert some images to gray, as torchvision's RandomGrayscale."""

    needs_colors: ClassVar[bool] = True

    name: Literal["gray"] = "gray"
    p: float = 0.1
    """Probability that an image becomes gray."""

    def __post_init__(self) -> None:
        require_probability(self.p)

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        from cifar_dist.data.operations.color import to_gray
        from cifar_dist.data.operations.grouping import apply_where

        return apply_where(
            images, samples.uniform("gray") < self.p, lambda part, _: to_gray(part), static=samples.static
        )
