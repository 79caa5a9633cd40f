"""Wide residual networks. Zagoruyko, Komodakis: *Wide Residual Networks*, arXiv:1605.07146.

WRN-d-k has three stages of (d - 4) / 6 pre-activation blocks, 16 k, 32 k and 64 k wide. Initialisation follows the
authors' code, He et al.'s fan-in normal, except that BN's weights are 1 where their torch drew them from [0, 1).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from cifar_dist.models.options import Probability
from cifar_dist.models.preact_resnet import PreActResNet

Depth = Annotated[int, Field(ge=10, le=1000)]
Width = Annotated[int, Field(ge=1, le=64)]


def wrn_28_10(
    classes: int, channels: int, *, depth: Depth = 28, width: Width = 10, dropout: Probability = 0.0
) -> nn.Module:
    """Build WRN-28-10, which the paper reports for CIFAR: 36,479,194 parameters at 10 classes."""
    return _wide_resnet(classes, channels, depth, width, dropout)


def wrn_16_8(
    classes: int, channels: int, *, depth: Depth = 16, width: Width = 8, dropout: Probability = 0.0
) -> nn.Module:
    """Build WRN-16-8: 10,961,370 parameters at 10 classes."""
    return _wide_resnet(classes, channels, depth, width, dropout)


def _wide_resnet(classes: int, channels: int, depth: int, width: int, dropout: float) -> nn.Module:
    """Build a WRN; ``dropout`` is between the convolutions of a block, 0.3 in the paper and 0.4 there for SVHN."""
    blocks, rest = divmod(depth - 4, 6)
    if rest:
        raise ValueError(f"depth {depth} is not 6 n + 4; use {depth - rest} or {depth - rest + 6}")
    widths = (16 * width, 32 * width, 64 * width)
    return PreActResNet(classes, channels, stem=16, widths=widths, blocks=blocks, final_norm=True, dropout=dropout)
