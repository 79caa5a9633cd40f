"""Convolutions of a network that is trained on a CPU in bfloat16, faster than oneDNN's or where those are wrong.

oneDNN computes the weight gradients of convolutions whose output has few pixels at half the speed of everything else.
Here they are a product of matrices. In float32 oneDNN is faster.

So are those that meet nothing but padding, as most of a 3x3 convolution of stride 2 on 1x1 pixels: oneDNN leaves them
uninitialised in bfloat16 (torch 2.15), and they are 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.cpu.gradients import Pair, image_gradient, weight_gradient
from cifar_dist.cpu.int8 import Int8Convolution

_MOST_PIXELS: Final = 16  # of the output; of more, oneDNN is as fast, or faster
_MOST_PIXELS_UNPADDED: Final = 36  # without padding, which the patches need a copy of the input for
_LEAST_INPUTS: Final = 64

# Of a training step in int8 on a core of an AMD EPYC with VNNI, in nanoseconds: what it saves, and what rounding takes.
_PER_PRODUCT: Final = 0.007
_PER_WEIGHT: Final = 12.0
_PER_VALUE: Final = 1.5
_PER_CONVOLUTION: Final = 3e5

_in_int8: ContextVar[bool] = ContextVar("in_int8", default=False)


@contextmanager
def convolutions_in_int8(enabled: bool) -> Iterator[None]:
    """Compute convolutions that would be trained in bfloat16 in 8-bit integers inside, and later their gradients."""
    token = _in_int8.set(enabled)
    try:
        yield
    finally:
        _in_int8.reset(token)


def replace_convolutions(module: nn.Module) -> None:
    """Compute the convolutions of a network with :func:`conv2d`. In place; its state dict keeps its keys and shapes."""
    for conv in module.modules():
        if (
            type(conv) is nn.Conv2d
            and (conv.bias, conv.padding_mode, conv.groups, conv.dilation) == (None, "zeros", 1, (1, 1))
            and not isinstance(conv.padding, str)
        ):
            (rows, columns), (top, left) = conv.stride, conv.padding
            conv._conv_forward = partial(_forward, (rows, columns), (top, left))  # type: ignore[method-assign]


def _forward(stride: Pair, padding: Pair, images: Tensor, weight: Tensor, _bias: None) -> Tensor:
    return conv2d(images, weight, stride, padding)


def conv2d(images: Tensor, weight: Tensor, stride: Pair = (1, 1), padding: Pair = (0, 0)) -> Tensor:
    """Convolve as torch's function does, or in 8-bit integers, see :func:`convolutions_in_int8`.

    Args:
        images: float [n, inputs, h, w].
        weight: float [outputs, inputs, k, k].
        stride, padding: (rows, columns), in pixels.

    Returns:
        float [n, outputs, rows, columns]; bfloat16 under autocast to it.
    """
    if weight.requires_grad and _trains_in_bf16(images):
        rows, columns = map(_positions, images.shape[2:], weight.shape[2:], stride, padding)
        if _in_int8.get() and _gains_in_int8(len(images) * rows * columns, weight):
            return _convolve(Int8Convolution, images, weight, stride, padding)
        if _gains_as_product(images, weight, stride, padding):
            return _convolve(_Convolution, images, weight.bfloat16(), stride, padding)
    return F.conv2d(images, weight, stride=stride, padding=padding)


def _convolve(
    function: type[torch.autograd.Function], images: Tensor, weight: Tensor, stride: Pair, padding: Pair
) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        convolved: Tensor = function.apply(images.bfloat16(), weight, stride, padding)
    return convolved


def _trains_in_bf16(images: Tensor) -> bool:
    if images.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _positions(side: int, kernel: int, step: int, border: int) -> int:
    """How often a kernel is applied, in one direction; all sizes are in pixels."""
    return (side + 2 * border - kernel) // step + 1


def _gains_in_int8(pixels: int, weight: Tensor) -> bool:
    """Whether a convolution with so many pixels of output, in all images, takes less time in 8-bit integers."""
    values = pixels * (weight.shape[0] + weight.shape[1])  # to round: images and gradients
    spent = _PER_WEIGHT * weight.numel() + _PER_VALUE * values + _PER_CONVOLUTION
    return _PER_PRODUCT * pixels * weight.numel() > spent


def _gains_as_product(images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> bool:
    sizes = [*zip(images.shape[2:], weight.shape[2:], stride, padding, strict=True)]
    if any(_wastes_weights(*size) for size in sizes):
        return True
    rows, columns = (_positions(*size) for size in sizes)
    most = _MOST_PIXELS if any(padding) else _MOST_PIXELS_UNPADDED
    return rows * columns <= most and weight.shape[1] >= _LEAST_INPUTS and weight[0, 0].numel() > 1


def _wastes_weights(side: int, kernel: int, step: int, border: int) -> bool:
    """Whether some weights of a kernel meet nothing but padding, in one direction; all sizes are in pixels."""
    begins = range(-border, side + border - kernel + 1, step)
    return not all(any(0 <= begin + place < side for begin in begins) for place in range(kernel))


class _Convolution(torch.autograd.Function):
    """A convolution of bfloat16 images with a bfloat16 weight, whose gradient is a product of matrices."""

    @staticmethod
    def forward(context: Any, images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        context.save_for_backward(images, weight)
        context.stride, context.padding = stride, padding
        return F.conv2d(images, weight, stride=stride, padding=padding)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (gradient,) = gradients
        images, weight = context.saved_tensors
        place = (context.stride, context.padding)
        of_images = image_gradient(images.shape, weight, gradient, *place) if context.needs_input_grad[0] else None
        rows = (images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1))
        of_weight = weight_gradient(*rows, weight.shape[2:], *place, multiply=torch.matmul)
        return of_images, of_weight.to(weight.dtype), None, None
