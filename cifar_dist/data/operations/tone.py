"""Operations on levels and edges: invert, posterize, solarize, autocontrast, equalize, sharpness."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.data.operations.constants import divide


def invert(images: Tensor) -> Tensor:
    """Compute 255 - x; uint8 of any shape."""
    return images.bitwise_not()


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the ``bits`` [n] (0 to 8) highest bits of each value of uint8 [n, c, h, w]."""
    mask = (0xFF00 >> bits.to(torch.int64)) & 0xFF
    return images & mask.to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values of uint8 [n, c, h, w] that are at least ``threshold`` [n], in [0, 255]."""
    first = threshold.ceil().to(torch.uint8)[:, None, None, None]
    return images ^ (images >= first).to(torch.uint8).neg_()  # 1 becomes 255; `where` is five times slower here


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of each image uint8 [n, c, h, w] to 0..255; a constant channel does not change."""
    low = images.amin(dim=(2, 3), keepdim=True).to(torch.float32)
    span = images.amax(dim=(2, 3), keepdim=True).to(torch.float32) - low
    flat = span == 0
    low, span = low.masked_fill_(flat, 0), span.mul_(1 / 255).masked_fill_(flat, 1)
    return images.to(torch.float32).sub_(low).div_(span).clamp_(0, 255).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """Equalize the histogram of each channel of each image uint8 [n, c, h, w], as Pillow and torchvision do."""
    values = images.flatten(2).to(torch.int64)
    histogram = torch.zeros(*values.shape[:2], 256, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, values, torch.ones_like(histogram[..., :1]).expand_as(values))
    cumulated = histogram.cumsum(2, dtype=torch.int32)
    # Like Pillow, do not count the pixels of the largest value that occurs.
    of_largest = histogram.gather(2, values.amax(dim=2, keepdim=True))
    step = (values.shape[2] - of_largest) // 255
    below = torch.nn.functional.pad(cumulated[..., :-1], (1, 0))
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255).to(torch.uint8)
    table = torch.where(step == 0, torch.arange(256, dtype=torch.uint8, device=images.device), table)
    return table.gather(2, values).view_as(images)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Move uint8 [n, c, h, w] away from (``factor`` float32 [n] below 1: towards) the blurred image.

    The blur is the mean of 3x3 pixels in which the centre counts five times. The outermost pixels do not change, nor
    does an image with fewer than three rows or columns.
    """
    if min(images.shape[2:]) < 3:
        return images.clone()
    pixels = images.to(torch.float32)
    middle = pixels[:, :, 1:-1, 1:-1]
    columns = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:] + middle * 4
    blurred = divide(total, 13).round_()
    middle.add_(blurred.sub_(middle).mul_(1 - factor[:, None, None, None]))
    return pixels.clamp_(0, 255).to(torch.uint8)
