"""Pixels become what a network takes: scaled, and normalised per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.config import AugmentConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError


class Normalize:
    """uint8 [n, h, w, c] -> float32 [n, c, h, w]: ``(x / 255 - mean) / std`` per channel.

    Args:
        mean, std: per channel, in [0, 1].
        device: where batches are.
        channels_last: give the result in the NHWC memory layout (it is a view, free of cost).
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, channels_last: bool):
        # A channel that never varies has a deviation of 0.
        self._scale = 1.0 / (255.0 * torch.tensor([s or 1.0 for s in std], dtype=torch.float64))
        self._shift = -torch.tensor(mean, dtype=torch.float64) * 255.0 * self._scale
        self._scale, self._shift = (t.to(torch.float32).to(device) for t in (self._scale, self._shift))
        self._channels_last = channels_last

    def __call__(self, images: Tensor) -> Tensor:
        batch = torch.addcmul(self._shift, images.to(torch.float32), self._scale).permute(0, 3, 1, 2)
        return batch if self._channels_last else batch.contiguous()


def normalization_statistics(
    config: AugmentConfig, trained_on: Manifest
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation in [0, 1]: the recipe's, or those of the training split.

    Raises:
        UserError: the recipe's have another number of channels than the images.
    """
    if not config.mean:
        return trained_on.mean, trained_on.std
    channels = trained_on.shape[2]
    if len(config.mean) != channels:
        raise UserError(f"augment.mean has {len(config.mean)} channels and the images have {channels}")
    return config.mean, config.std
