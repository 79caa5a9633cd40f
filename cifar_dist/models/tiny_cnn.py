"""A network of some 4,000 parameters without batch statistics: its output for an image depends on no other image.

Group normalisation (Wu, He: *Group Normalization*, arXiv:1803.08494) makes training on one and on many processes
the same computation, so this is the network of tests that compare runs number by number.
"""

from __future__ import annotations

from torch import Tensor, nn

from cifar_dist.models.options import Probability
from cifar_dist.models.registry import register


@register("tiny-cnn")
def tiny_cnn(classes: int, channels: int, *, dropout: Probability = 0.0) -> nn.Module:
    """The network; ``dropout`` is the probability before the last layer."""
    return TinyCNN(classes, channels, dropout=dropout)


class TinyCNN(nn.Module):
    """Takes float [N, C, H, W] of any size, gives logits, float [N, classes]."""

    def __init__(self, classes: int, channels: int, *, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(16 * 4**2, classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits
