"""A fault of oneDNN, which computes torch's convolutions on a CPU, and the way around it."""

from __future__ import annotations

from functools import partial
from typing import Final

from torch import Tensor, nn

_VECTOR: Final = 16  # floats in the widest register, and the channels of one of oneDNN's blocks


def avoid_strided_1x1(module: nn.Module) -> None:
    """Make narrow strided 1x1 convolutions subsample their input and convolve without stride. In place; equal results.

    With a stride, channels-last images and fewer than 16 channels, oneDNN writes past its workspace in the
    gradient of the weights: a crash, or wrong numbers (uxlfoundation/oneDNN#6035; torch 2.15, fp32 and bf16). The
    shortcuts of small residual networks are such convolutions. Without a stride there is no workspace.

    Args:
        module: a network, before it is wrapped; its state keeps its names and shapes.
    """
    for conv in module.modules():
        if (
            type(conv) is nn.Conv2d
            and (conv.kernel_size, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)
            and max(conv.stride) > 1
            and conv.in_channels < _VECTOR
        ):
            rows, columns = conv.stride
            conv.register_forward_pre_hook(partial(_subsample, rows, columns))
            conv.stride = (1, 1)


def _subsample(rows: int, columns: int, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Images [n, c, h, w] -> [n, c, ceil(h / rows), ceil(w / columns)]."""
    return inputs[0][..., ::rows, ::columns]
