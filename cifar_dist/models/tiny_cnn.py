"""A network of about 4,000 parameters without batch statistics: the output for an image depends on that image alone.

Group normalisation (Wu, He: *Group Normalization*, arXiv:1803.08494) makes training the same computation on any
number of processes, so tests that compare runs exactly use this network.
"""

from __future__ import annotations

from torch import Tensor, nn

from cifar_dist.models.options import Probability
from cifar_dist.models.pooling import GridAvgPool


class TinyCNN(nn.Module):
    """Maps images, float [N, C, H, W] of any size, to logits, float [N, classes]."""

    def __init__(self, classes: int, channels: int, *, dropout: Probability = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            GridAvgPool(4),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(16 * 4**2, classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits
