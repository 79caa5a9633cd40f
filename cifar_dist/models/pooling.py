"""Pools of any image size whose gradients are the same in each run on a GPU.

Torch's adaptive pools add gradients up in any order there, so a GPU gets pools of a fixed window, which do not. On a
CPU the results are equal, bit for bit and with ties, and the adaptive pools are the faster ones.

Torch's mean of all pixels writes its gradient in channels_first, whatever the images are in. The layers before it, and
the sum with the gradient of a residual connection, then compute in two formats at once: several times slower.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GlobalMaxPool(nn.AdaptiveMaxPool2d):
    """The maximum of each channel: maps [n, c, h, w] to [n, c, 1, 1]."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type == "cuda":
            return max_of_window(images)
        pooled: Tensor = F.adaptive_max_pool2d(images, 1)  # TorchScript knows no super()
        return pooled


class GridAvgPool(nn.AdaptiveAvgPool2d):
    """The means of ``grid`` x ``grid`` windows: maps [n, c, h, w] to [n, c, grid, grid]."""

    def __init__(self, grid: int) -> None:
        super().__init__(grid)
        self._grid = grid

    def forward(self, images: Tensor) -> Tensor:
        if self._grid == 1 and not torch.jit.is_scripting() and images.requires_grad:  # type: ignore[attr-defined]
            mean: Tensor = _MeanOfPixels.apply(images)
            return mean
        if images.device.type == "cuda" and self._grid > 1:
            return means_of_windows(images, self._grid)
        return F.adaptive_avg_pool2d(images, self._grid)


class _MeanOfPixels(torch.autograd.Function):
    """The mean of each channel, whose gradient is one number per channel in memory, and so fits any memory format."""

    @staticmethod
    def forward(context: Any, images: Tensor) -> Tensor:
        context.shape = images.shape
        return F.adaptive_avg_pool2d(images, 1)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        height, width = context.shape[2:]
        spread: Tensor = (gradient / (height * width)).expand(context.shape)
        return spread


def max_of_window(images: Tensor) -> Tensor:
    """:class:`GlobalMaxPool` as a pool of fixed size."""
    pooled: Tensor = F.max_pool2d(images, images.shape[2:])
    return pooled


def means_of_windows(images: Tensor, grid: int) -> Tensor:
    """:class:`GridAvgPool` as a pool of fixed size, or as means of slices where the grid does not divide the image."""
    height, width = images.shape[2], images.shape[3]
    if height % grid == 0 and width % grid == 0:
        return F.avg_pool2d(images, (height // grid, width // grid))
    rows = [images[:, :, i * height // grid : ((i + 1) * height + grid - 1) // grid].mean(2) for i in range(grid)]
    means = torch.stack(rows, 2)
    columns = [means[:, :, :, i * width // grid : ((i + 1) * width + grid - 1) // grid].mean(3) for i in range(grid)]
    return torch.stack(columns, 3)
