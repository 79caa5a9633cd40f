"""Random erasing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cifar_dist.config.section import require, require_probability
from cifar_dist.data.transforms import Samples, Transform

if TYPE_CHECKING:
    from torch import Tensor

_ATTEMPTS = 10  # torchvision's


@dataclass(frozen=True)
class Erasing(Transform):
    """Set a random rectangle to the colour ``augment.mean`` (Zhong et al., arXiv:1708.04896), as torchvision does."""

    name: Literal["erasing"] = "erasing"
    p: float = 0.5
    """Probability that an image is erased."""
    area: tuple[float, float] = (0.02, 0.33)
    """Smallest and largest fraction of the image, drawn uniformly."""
    ratio: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest height / width, drawn uniformly on a log scale."""

    def __post_init__(self) -> None:
        require_probability(self.p)
        require(
            0 <= self.area[0] <= self.area[1] <= 1,
            f"area {list(self.area)} must be two increasing fractions in [0, 1]",
        )
        require(0 < self.ratio[0] <= self.ratio[1], f"ratio {list(self.ratio)} must be two increasing numbers above 0")

    def boxes(self, samples: Samples, height: int, width: int) -> Tensor:
        """Draw boxes, int64 [n, 4]: top, left, height and width, all 0 where nothing is erased.

        A rectangle that is not smaller than the image is redrawn, at most ten times. All ten are drawn at once and the
        first that fits is used, because checking whether another draw is needed would wait for the device.
        """
        import torch

        low, high = (math.log(ratio) for ratio in self.ratio)
        draws = samples.uniform("erasing", range(3, 3 + 2 * _ATTEMPTS)).to(torch.float64)
        area = height * width * (self.area[0] + draws[::2] * (self.area[1] - self.area[0]))
        ratio = torch.exp(low + draws[1::2] * (high - low))
        tall, wide = ((side.sqrt().round().to(torch.int64)) for side in (area * ratio, area / ratio))
        fits = (tall < height) & (wide < width)
        fits &= samples.uniform("erasing", 0) < self.p
        first = fits & (fits.cumsum(0) == 1)
        rows, columns = (tall * first).sum(0), (wide * first).sum(0)
        places = samples.bits("erasing", range(1, 3))
        return torch.stack([places[0] % (height - rows + 1), places[1] % (width - columns + 1), rows, columns], dim=1)

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        from cifar_dist.data.operations.boxes import erase

        return erase(images, self.boxes(samples, *images.shape[2:]), samples.fill)
