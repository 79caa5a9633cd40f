"""Turn uint8 pixels into the network's input: scaled and normalised per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.config import AugmentConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.formatting import counted


class Normalize:
    """uint8 [n, h, w, c] -> float32 [n, c, h, w]: ``(x / 255 - mean) / std`` per channel.

    Args:
        mean, std: per channel, in [0, 1].
        device: device of the batches.
        channels_last: return the NHWC memory layout (a view, at no cost).
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, channels_last: bool):
        # The standard deviation of a constant channel is 0.
        self._scale = 1.0 / (255.0 * torch.tensor([s or 1.0 for s in std], dtype=torch.float64))
        self._shift = -torch.tensor(mean, dtype=torch.float64) * 255.0 * self._scale
        self._scale, self._shift = (t.to(torch.float32).to(device) for t in (self._scale, self._shift))
        self._channels_last = channels_last
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}  # scale and shift of each number of a row, by width

    def __call__(self, images: Tensor) -> Tensor:
        height, width, channels = images.shape[1:]
        # Rows of all channels: a CPU computes many numbers at once only along a dimension of many.
        rows = images.reshape(-1, width * channels).to(torch.float32)
        if width not in self._rows:
            self._rows[width] = self.of_row(width)
        scale, shift = self._rows[width]
        rows = torch.addcmul(shift, rows, scale)
        return self.in_layout(rows.view(-1, height, width, channels))

    def of_row(self, width: int) -> tuple[Tensor, Tensor]:
        """Return the scale and the shift of each number of a row of pixels, float32 [width * channels]."""
        return self._scale.repeat(width), self._shift.repeat(width)

    def in_layout(self, images: Tensor) -> Tensor:
        """Return images [n, h, w, c] as the network's input [n, c, h, w], in the memory layout that was asked for."""
        batch = images.permute(0, 3, 1, 2)
        return batch if self._channels_last else batch.contiguous()


def normalization_statistics(
    config: AugmentConfig, trained_on: Manifest
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, in [0, 1]: the recipe's, or the training split's.

    Raises:
        UserError: the recipe's have a different number of channels than the images.
    """
    if not config.mean:
        return trained_on.mean, trained_on.std
    channels = trained_on.shape[2]
    if len(config.mean) != channels:
        raise UserError(
            f"augment.mean has {counted(len(config.mean), 'value')}, but the images have "
            f"{counted(channels, 'channel')}; give one per channel"
        )
    return config.mean, config.std
