"""Augmentation of a batch on its device, each sample from its own counter-based randomness.

What is done to a sample is a function of (seed, epoch, sample id): whichever rank, batch or device it lands on,
the pixels are the same. Flip and crop are one gather: the source row and column of every output pixel are computed,
so nothing is padded or copied twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.config import AugmentConfig
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.randomness import bits, integers, uniform
from cifar_dist.data.transforms.chain import build_transforms
from cifar_dist.errors import UserError


class Augment:
    """Random flip and crop of uint8 batches, the recipe's transforms, cutout, then :class:`Normalize`.

    Args:
        config: what is done.
        seed: the run's seed.
        mean: per channel, in [0, 1]: the colour that fills what a crop or cutout leaves empty.
        normalize: applied last.

    Raises:
        UserError: a transform's range that makes no sense.
    """

    def __init__(self, config: AugmentConfig, seed: int, mean: tuple[float, ...], normalize: Normalize) -> None:
        self._config = config
        self._seed = seed
        fill = tuple(round(255 * m) for m in mean)
        self._fill = torch.tensor(fill, dtype=torch.uint8)
        self._transforms = build_transforms(config, fill)
        self._normalize = normalize

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuse images (height, width, channels) that cannot be augmented so.

        Raises:
            UserError: a reflecting crop of more pixels than the image has, or colour transforms without colours.
        """
        height, width, channels = shape
        if self._transforms and channels != 3:
            raise UserError(f"only flip, crop and cutout work on images of {channels} channels; set the others off")
        if self._config.crop_fill == "reflect" and self._config.crop >= min(height, width):
            raise UserError(f"augment.crop {self._config.crop} is too large to reflect in images of {height}x{width}")

    def __call__(self, images: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """float32 [n, c, h, w] of uint8 ``images`` [n, h, w, c] with sample ``ids`` int64 [n]."""
        return self._normalize(self.pixels(images, ids, epoch))

    def pixels(self, images: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """The same before normalisation: uint8 [n, h, w, c]."""
        config = self._config
        count, height, width, channels = images.shape
        self.check((height, width, channels))
        fill = self._fill.to(images.device, non_blocking=True)
        rows = torch.arange(height, device=images.device).expand(count, -1)
        columns = torch.arange(width, device=images.device).expand(count, -1)
        flip = flips(config.flip, self._seed, epoch, ids)
        if flip is not None:
            columns = torch.where(flip[:, None], width - 1 - columns, columns)
        if config.crop:
            offset = integers(self._seed, epoch, ids, "crop", 2 * config.crop + 1, range(2))[..., None] - config.crop
            rows, columns = rows + offset[0], columns + offset[1]
        if flip is not None or config.crop:
            outside = None
            if config.crop and config.crop_fill == "reflect":
                rows, columns = _reflect(rows, height), _reflect(columns, width)
            elif config.crop:
                outside = _outside(rows, height)[:, :, None] | _outside(columns, width)[:, None, :]
                rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
            source = (torch.arange(count, device=images.device)[:, None, None] * height + rows[:, :, None]) * width
            images = images.reshape(-1, channels)[source + columns[:, None, :]]
            if outside is not None:
                images = torch.where(outside[..., None], fill, images)
        if self._transforms:
            planes = images.permute(0, 3, 1, 2).contiguous()  # what they work on, see cifar_dist.data.transforms
            for transform in self._transforms:
                planes = transform(planes, self._seed, epoch, ids)
            images = planes.permute(0, 2, 3, 1).contiguous()
        if config.cutout:
            places = bits(self._seed, epoch, ids, "cutout", range(2))
            top, left = places[0] % height - config.cutout // 2, places[1] % width - config.cutout // 2
            inside = _between(height, top, config.cutout)[:, :, None] & _between(width, left, config.cutout)[:, None, :]
            images = torch.where(inside[..., None], fill, images)
        return images


def flips(kind: str, seed: int, epoch: int, ids: Tensor) -> Tensor | None:
    """Which samples are mirrored in this epoch, bool [n]; None for none at all.

    ``alternating`` flips a random half in the first epoch and then each sample in every second one, so that two
    epochs show both sides of everything (Keller Jordan, *94% on CIFAR-10 in 3.29 seconds*, arXiv:2404.00498, 3.6).
    """
    if kind == "none":
        return None
    if kind == "random":
        return uniform(seed, epoch, ids, "flip") < 0.5
    return (integers(seed, 0, ids, "flip", 2) + epoch) % 2 == 1


def _outside(positions: Tensor, size: int) -> Tensor:
    return (positions < 0) | (positions >= size)


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Mirror without repeating the edge, as torch's ``reflect`` padding: -1 -> 1, size -> size - 2."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def _between(size: int, start: Tensor, length: int) -> Tensor:
    """bool [n, size]: positions in [start, start + length)."""
    positions = torch.arange(size, device=start.device)
    return (positions >= start[:, None]) & (positions < start[:, None] + length)
