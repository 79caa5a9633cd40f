"""Random erasing: a rectangle of one colour at a random place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_dist.data.randomness import bits, uniform
from cifar_dist.data.transforms.common import BLACK, Fill, fill_color
from cifar_dist.errors import UserError

_ATTEMPTS = 10  # torchvision's


def erase(images: Tensor, boxes: Tensor, fill: Fill = BLACK) -> Tensor:
    """Set a rectangle of each image to ``fill``.

    Args:
        images: [n, c, h, w] of any dtype.
        boxes: int64 [n, 4]: top, left, height, width in pixels. What sticks out is ignored.
        fill: one number for each channel, or one for all.
    """
    inside = inside_boxes(boxes, *images.shape[2:])[:, None]
    return torch.where(inside, fill_color(fill, images), images)


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """bool [n, height, width]: the pixels in ``boxes`` (int64 [n, 4]: top, left, height, width)."""
    top, left, tall, wide = boxes.unbind(1)
    return _between(height, top, tall)[:, :, None] & _between(width, left, wide)[:, None, :]


def _between(size: int, start: Tensor, length: Tensor) -> Tensor:
    """bool [n, size]: the places in [start, start + length)."""
    places = torch.arange(size, device=start.device)
    return (places >= start[:, None]) & (places < (start + length)[:, None])


@dataclass(frozen=True)
class RandomErasing:
    """Random erasing (Zhong et al., *Random erasing data augmentation*, arXiv:1708.04896), by ``torchvision``'s law.

    Attributes:
        p: probability that an image is erased.
        area: smallest and largest fraction of the image, drawn uniformly.
        ratio: smallest and largest height / width, drawn uniformly on a log scale.
        fill: one number for each channel, or one for all.

    Raises:
        UserError: a range that makes no sense.
    """

    p: float = 0.5
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: Fill = BLACK

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UserError(f"erasing p {self.p} must be in [0, 1]")
        if not 0 <= self.area[0] <= self.area[1] <= 1:
            raise UserError(f"erasing area {list(self.area)} must be two increasing fractions in [0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"erasing ratio {list(self.ratio)} must be two increasing numbers above 0")

    def boxes(self, seed: int, epoch: int, ids: Tensor, height: int, width: int) -> Tensor:
        """int64 [n, 4] for :func:`erase`; height and width are 0 where nothing is erased.

        A rectangle that is not smaller than the image is drawn anew, ten times at most. All ten are drawn at once, and
        the first that fits is taken: to ask whether a second is needed would wait for the device.
        """
        low, high = (math.log(ratio) for ratio in self.ratio)
        draws = uniform(seed, epoch, ids, "erasing", range(3, 3 + 2 * _ATTEMPTS)).to(torch.float64)
        area = height * width * (self.area[0] + draws[::2] * (self.area[1] - self.area[0]))
        ratio = torch.exp(low + draws[1::2] * (high - low))
        tall, wide = ((side.sqrt().round().to(torch.int64)) for side in (area * ratio, area / ratio))
        fits = (tall < height) & (wide < width)
        fits &= uniform(seed, epoch, ids, "erasing", 0) < self.p
        first = fits & (fits.cumsum(0) == 1)
        rows, columns = (tall * first).sum(0), (wide * first).sum(0)
        places = bits(seed, epoch, ids, "erasing", range(1, 3))
        return torch.stack([places[0] % (height - rows + 1), places[1] % (width - columns + 1), rows, columns], dim=1)

    def __call__(self, images: Tensor, seed: int, epoch: int, ids: Tensor) -> Tensor:
        return erase(images, self.boxes(seed, epoch, ids, *images.shape[2:]), self.fill)
