"""Wide residual networks. Zagoruyko, Komodakis: *Wide Residual Networks*, arXiv:1605.07146.

WRN-d-k: three stages of (d - 4) / 6 pre-activation blocks, 16 k, 32 k and 64 k wide. Weights start as in the authors'
code, He et al.'s normal by the fan in; BN's start at 1, where the old torch drew them from [0, 1).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from cifar_dist.models.options import Probability
from cifar_dist.models.preact_resnet import PreActResNet
from cifar_dist.models.registry import register

Depth = Annotated[int, Field(ge=10, le=1000)]
Width = Annotated[int, Field(ge=1, le=64)]


@register("wrn-28-10")
def wrn_28_10(
    classes: int, channels: int, *, depth: Depth = 28, width: Width = 10, dropout: Probability = 0.0
) -> nn.Module:
    """36,479,194 parameters at 10 classes: the one that the paper reports for CIFAR."""
    return _wide_resnet(classes, channels, depth, width, dropout)


@register("wrn-16-8")
def wrn_16_8(
    classes: int, channels: int, *, depth: Depth = 16, width: Width = 8, dropout: Probability = 0.0
) -> nn.Module:
    """10,961,370 parameters at 10 classes."""
    return _wide_resnet(classes, channels, depth, width, dropout)


def _wide_resnet(classes: int, channels: int, depth: int, width: int, dropout: float) -> nn.Module:
    """``dropout``: between the convolutions of a block; the paper's is 0.3, or 0.4 for SVHN."""
    blocks, left = divmod(depth - 4, 6)
    if left:
        raise ValueError(f"depth {depth} must be 6 n + 4; the nearest are {depth - left} and {depth - left + 6}")
    widths = (16 * width, 32 * width, 64 * width)
    return PreActResNet(classes, channels, stem=16, widths=widths, blocks=blocks, final_norm=True, dropout=dropout)
