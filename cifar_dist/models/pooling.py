"""Pools of any image size whose gradients are the same in each run on a GPU.

Torch's adaptive pools add gradients up in any order there, so a GPU gets pools of a fixed window, which do not. On a
CPU the results are equal, bit for bit and with ties, and the adaptive pools are the faster ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.errors import UserError


class GlobalMaxPool(nn.AdaptiveMaxPool2d):
    """The maximum of each channel: maps [n, c, h, w] to [n, c, 1, 1]."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type == "cuda":
            return max_of_window(images)
        pooled: Tensor = super().forward(images)
        return pooled


class GridAvgPool(nn.AdaptiveAvgPool2d):
    """The means of ``grid`` x ``grid`` windows: maps [n, c, h, w] to [n, c, grid, grid].

    Raises:
        UserError: on a GPU, with deterministic algorithms, for an image that the grid does not divide.
    """

    def __init__(self, grid: int) -> None:
        super().__init__(grid)
        self._grid = grid

    def forward(self, images: Tensor) -> Tensor:
        if self._grid > 1 and images.device.type == "cuda":
            height, width = images.shape[2:]
            if height % self._grid == width % self._grid == 0:
                return means_of_windows(images, self._grid)
            if torch.are_deterministic_algorithms_enabled():
                raise UserError(
                    f"train.deterministic: torch has no deterministic average pool of {height} x {width} pixels to "
                    f"{self._grid} x {self._grid}; use images of another size, or drop --train.deterministic"
                )
        pooled: Tensor = super().forward(images)
        return pooled


def max_of_window(images: Tensor) -> Tensor:
    """:class:`GlobalMaxPool` as a pool of fixed size."""
    pooled: Tensor = F.max_pool2d(images, images.shape[2:])
    return pooled


def means_of_windows(images: Tensor, grid: int) -> Tensor:
    """:class:`GridAvgPool` as a pool of fixed size."""
    height, width = images.shape[2:]
    pooled: Tensor = F.avg_pool2d(images, (height // grid, width // grid))
    return pooled
