"""The small ResNet with squeeze-and-excitation and optional stochastic depth: about 2.8 million parameters."""

from __future__ import annotations

from torch import nn

from cifar_dist.models.options import Probability, Size
from cifar_dist.models.small_resnet import SmallResNet


def se_resnet(
    classes: int,
    channels: int,
    *,
    widths: tuple[Size, ...] = (32, 64, 128, 256),
    blocks: tuple[Size, ...] = (2, 2, 2, 2),
    reduction: Size = 16,
    stochastic_depth: Probability = 0.0,
    dropout: Probability = 0.3,
) -> nn.Module:
    """Build the network: a 3x3 stem as wide as the first stage, squeeze-and-excitation blocks, and a dropout head."""
    return SmallResNet(
        classes,
        channels,
        widths=widths,
        blocks=blocks,
        stem=widths[0] if widths else 1,  # SmallResNet refuses empty widths
        dropout=(dropout,),
        squeeze=reduction,
        stochastic_depth=stochastic_depth,
    )
