"""Work around a memory error of oneDNN, which computes torch's convolutions on a CPU."""

from __future__ import annotations

from functools import partial
from typing import Final

from torch import Tensor, nn

_BLOCK_CHANNELS: Final = 16  # channels in one oneDNN block: the floats in the widest vector register


def avoid_strided_1x1(module: nn.Module) -> None:
    """Make narrow strided 1x1 convolutions subsample their input first. In place; the result is the same.

    With a stride, channels-last images and fewer than 16 channels, oneDNN writes past its workspace when it computes
    the weight gradient, which crashes or gives wrong numbers (uxlfoundation/oneDNN#6035; torch 2.15, fp32 and bf16).
    The shortcuts of small residual networks are such convolutions. A convolution of stride 1 uses no workspace.

    Args:
        module: an unwrapped network; its state dict keeps its keys and shapes.
    """
    for conv in module.modules():
        if (
            type(conv) is nn.Conv2d
            and (conv.kernel_size, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)
            and max(conv.stride) > 1
            and conv.in_channels < _BLOCK_CHANNELS
        ):
            rows, columns = conv.stride
            conv.register_forward_pre_hook(partial(_subsample, rows, columns))
            conv.stride = (1, 1)


def _subsample(rows: int, columns: int, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Map images [n, c, h, w] to [n, c, ceil(h / rows), ceil(w / columns)]."""
    return inputs[0][..., ::rows, ::columns]
