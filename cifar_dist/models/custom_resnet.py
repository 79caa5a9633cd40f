"""The 24-epoch custom ResNet: 6,573,130 parameters at 10 classes, 379 M multiply-adds for a 32x32 image.

After David Page's ResNet-9 for DAWNBench (*How to train your ResNet*, myrtle.ai, 2018)::

    conv 3-64 -> conv 64-128, pool + residual pair -> conv 128-256, pool -> conv 256-512, pool + residual pair
              -> max-pool -> linear 512-classes
"""

from __future__ import annotations

from torch import Tensor, nn

from cifar_dist.models.global_pool import GlobalMaxPool
from cifar_dist.models.registry import register


@register("custom-resnet")
def custom_resnet(classes: int, channels: int) -> nn.Module:
    """Build the network, which has no options."""
    return CustomResNet(classes, channels)


class CustomResNet(nn.Module):
    """Maps images, float [N, C, H, W] with H and W at least 8, to logits, float [N, classes]."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.prep = _conv(channels, 64)
        self.layer1 = nn.Sequential(_conv(64, 128, pool=True), _Residual(128))
        self.layer2 = _conv(128, 256, pool=True)
        self.layer3 = nn.Sequential(_conv(256, 512, pool=True), _Residual(512))
        self.pool = GlobalMaxPool()  # a 4x4 max-pool for 32x32 images, and works for any other size
        self.head = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(images))))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _conv(inputs: int, width: int, *, pool: bool = False) -> nn.Sequential:
    conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
    return nn.Sequential(conv, *([nn.MaxPool2d(2)] if pool else []), nn.BatchNorm2d(width), nn.ReLU())
