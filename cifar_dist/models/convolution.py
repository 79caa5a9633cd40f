"""A convolution made by hand: patches laid out as a matrix, and one matrix product a group."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """What ``torch.nn.functional.conv2d`` computes, in the image-to-column form (Chellapilla et al., 2006).

    Args:
        images: float [N, C, H, W].
        weight: float [outputs, C / groups, kernel height, kernel width].
        bias: float [outputs].

    Returns:
        float [N, outputs, H', W'].
    """
    outputs, kernel = len(weight), (weight.shape[2], weight.shape[3])
    patches = F.unfold(images, kernel, dilation=dilation, padding=padding, stride=stride)  # [N, C * kh * kw, H' * W']
    grouped = patches.unflatten(1, (groups, -1))
    products = torch.einsum("ngkp,gok->ngop", grouped, weight.reshape(groups, outputs // groups, -1))
    height, width = (
        (side + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for side, pad, step, taps, jump in zip(images.shape[2:], padding, dilation, kernel, stride, strict=True)
    )
    result = products.reshape(len(images), outputs, height, width)
    return result if bias is None else result + bias.view(-1, 1, 1)


class UnfoldConv2d(nn.Conv2d):
    """``nn.Conv2d`` with numeric zero padding, computed by :func:`convolve`: same parameters, same numbers, slower."""

    def forward(self, images: Tensor) -> Tensor:
        assert self.padding_mode == "zeros"
        assert not isinstance(self.padding, str)
        return convolve(
            images,
            self.weight,
            self.bias,
            stride=_pair(self.stride),
            padding=_pair(self.padding),
            dilation=_pair(self.dilation),
            groups=self.groups,
        )


def _pair(sides: tuple[int, ...]) -> tuple[int, int]:
    height, width = sides
    return height, width
