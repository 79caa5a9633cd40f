"""The 24-epoch custom ResNet: 6,573,130 parameters at 10 classes, 379 M multiply-adds for a 32x32 image.

After David Page's ResNet-9 for DAWNBench (*How to train your ResNet*, myrtle.ai, 2018)::

    conv 3-64 -> conv 64-128, pool + residual pair -> conv 128-256, pool -> conv 256-512, pool + residual pair
              -> max-pool -> linear 512-classes

Options ablate it: other numbers of residual pairs, and dropout.
"""

from __future__ import annotations

from torch import Tensor, nn

from cifar_dist.models.options import Probability, SizeOrZero
from cifar_dist.models.pooling import GlobalMaxPool


class CustomResNet(nn.Module):
    """Maps images, float [N, C, H, W] with H and W at least 8, to logits, float [N, classes].

    Args:
        pairs: residual pairs of convolutions in each of the three blocks.
        dropout: probability after each activation.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        *,
        pairs: tuple[SizeOrZero, SizeOrZero, SizeOrZero] = (1, 0, 1),
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        self.prep = _conv(channels, 64, dropout)
        self.layer1 = _block(64, 128, pairs[0], dropout)
        self.layer2 = _block(128, 256, pairs[1], dropout)
        self.layer3 = _block(256, 512, pairs[2], dropout)
        self.pool = GlobalMaxPool()  # a 4x4 max-pool for 32x32 images, and works for any other size
        self.head = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(images))))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


class _Residual(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width, dropout), _conv(width, width, dropout))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _block(inputs: int, width: int, pairs: int, dropout: float) -> nn.Sequential:
    conv = _conv(inputs, width, dropout, pool=True)
    return nn.Sequential(conv, *(_Residual(width, dropout) for _ in range(pairs))) if pairs else conv


def _conv(inputs: int, width: int, dropout: float, *, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, width, 3, padding=1, bias=False)]
    layers += [nn.MaxPool2d(2)] if pool else []
    layers += [nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))
