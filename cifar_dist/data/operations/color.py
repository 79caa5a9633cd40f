"""Brightness of any images; contrast, saturation, hue and gray of RGB images, whose c is 3."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.data.operations.constants import divide

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision rounds it


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply uint8 [n, c, h, w] by ``factor`` float32 [n], at least 0: 0 is black, 1 changes nothing."""
    return images.to(torch.float32).mul_(_per_image(factor)).clamp_(0, 255).to(torch.uint8)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Move uint8 [n, c, h, w] away from (``factor`` float32 [n] below 1: towards) the mean gray of each image."""
    _, _, height, width = images.shape
    # Gray levels are integers, so their sum is exact in any order of addition.
    total = _luma(images).to(torch.int32).sum(dim=(1, 2, 3), keepdim=True)
    return _blend(images, divide(total.to(torch.float32), height * width), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move uint8 [n, c, h, w] away from (``factor`` float32 [n] below 1: towards) the gray of each pixel."""
    return _blend(images, _luma(images), factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of uint8 [n, c, h, w] by ``shift`` float32 [n], in [-0.5, 0.5] of the colour circle.

    Converting to HSV and back changes only the position on the hexagon of hues, so this computes only that. With the
    largest channel V, the smallest m and C = V - m, the distance from red is ``1 + (g + b - r - m) / C``, on
    green's side or on blue's; and at position p a channel is ``V - C * clamp(2 - d, 0, 1)`` where d is the distance
    from p to the channel's opposite (3 for r, 5 for g, 1 for b), the shorter way round the 6. There are no
    cases, because on a CPU a choice per pixel costs twenty times an addition.
    """
    red, green, blue = images.to(torch.float32).unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    chroma = largest - smallest
    position = (green + blue).sub_(red).sub_(smallest).div_(chroma.clamp(min=1)).add_(1)
    position = divide(position.copysign_(green - blue), 6).add_(shift[:, None, None])
    # From [0, 1] to 256 bins of equal width, as torchvision converts to uint8.
    widen = (256 - 1e-3) / 255
    largest, chroma = largest.mul_(widen), chroma.mul_(widen)
    result = torch.empty_like(images)
    for channel, opposite in enumerate((3, 5, 1)):
        turn = position - opposite / 6
        turn = turn.sub_(turn.round()).abs_()
        result[:, channel] = turn.mul_(-6).add_(2).clamp_(0, 1).mul_(chroma).neg_().add_(largest)
    return result


def to_gray(images: Tensor) -> Tensor:
    """Set every channel of uint8 [n, c, h, w] to the gray of the pixel."""
    return _luma(images).to(torch.uint8).repeat(1, 3, 1, 1)


def _luma(images: Tensor) -> Tensor:
    """Return gray levels, float32 [n, 1, h, w] with integer values."""
    red, green, blue = images.to(torch.float32).split(1, dim=1)
    gray: Tensor = red * _LUMA[0]
    return gray.add_(green * _LUMA[1]).add_(blue * _LUMA[2]).floor_()


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = _per_image(factor)
    return (images.to(torch.float32).mul_(factor)).add_(other * (1 - factor)).clamp_(0, 255).to(torch.uint8)


def _per_image(numbers: Tensor) -> Tensor:
    return numbers[:, None, None, None]
