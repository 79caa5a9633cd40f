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

        A rectangle that is not smaller than the image is drawn anew, ten times at most.
        """
        low, high = (math.log(ratio) for ratio in self.ratio)
        rows, columns = torch.zeros_like(ids), torch.zeros_like(ids)
        wanted = uniform(seed, epoch, ids, "erasing", 0) < self.p
        for attempt in range(_ATTEMPTS):
            u, v = (uniform(seed, epoch, ids, "erasing", 3 + 2 * attempt + i).to(torch.float64) for i in range(2))
            area = height * width * (self.area[0] + u * (self.area[1] - self.area[0]))
            ratio = torch.exp(low + v * (high - low))
            tall, wide = ((side.sqrt().round().to(torch.int64)) for side in (area * ratio, area / ratio))
            fits = wanted & (tall < height) & (wide < width)
            rows, columns = torch.where(fits, tall, rows), torch.where(fits, wide, columns)
            wanted = wanted & ~fits
            if not wanted.any():  # nearly always after two attempts; further ones would change nothing
                break
        top = bits(seed, epoch, ids, "erasing", 1) % (height - rows + 1)
        left = bits(seed, epoch, ids, "erasing", 2) % (width - columns + 1)
        return torch.stack([top, left, rows, columns], dim=1)

    def __call__(self, images: Tensor, seed: int, epoch: int, ids: Tensor) -> Tensor:
        return erase(images, self.boxes(seed, epoch, ids, *images.shape[2:]), self.fill)
