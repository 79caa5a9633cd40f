"""Weight gradients of convolutions whose output has few pixels, in bfloat16 on a CPU.

oneDNN computes them at half the speed of everything else. Here they are one product of matrices (Chellapilla et al.,
*High Performance Convolutional Neural Networks for Document Processing*, 2006): the gradients of the output,
[outputs, n * h * w], times the patches of the input, [n * h * w, k * k * inputs]. In float32 oneDNN is faster.

So are those that meet nothing but padding, as most of a 3x3 convolution of stride 2 on 1x1 pixels: oneDNN leaves them
uninitialised in bfloat16 (torch 2.15), and they are 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_PIXELS: Final = 16  # of the output; of more, oneDNN is as fast, or faster
_MOST_PIXELS_UNPADDED: Final = 36  # without padding, which the patches need a copy of the input for
_LEAST_INPUTS: Final = 64
_MOST_NUMBERS: Final = 2**25  # in the patches at a time: 64 MB

Pair = tuple[int, int]


def multiply_for_weight_gradients(module: nn.Module) -> None:
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
    """Convolve as torch's function does; the gradient of ``weight`` is a product of matrices where that is better.

    Args:
        images: float [n, inputs, h, w].
        weight: float [outputs, inputs, k, k].
        stride, padding: (rows, columns), in pixels.

    Returns:
        float [n, outputs, rows, columns]; bfloat16 under autocast to it.
    """
    if not (weight.requires_grad and _is_better(images, weight, stride, padding)):
        return F.conv2d(images, weight, stride=stride, padding=padding)
    with torch.autocast("cpu", enabled=False):
        convolved: Tensor = _Convolution.apply(images.bfloat16(), weight.bfloat16(), stride, padding)
    return convolved


def _is_better(images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> bool:
    if images.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    sizes = [*zip(images.shape[2:], weight.shape[2:], stride, padding, strict=True)]
    if any(_wastes_weights(*size) for size in sizes):
        return True
    rows, columns = ((side + 2 * border - kernel) // step + 1 for side, kernel, step, border in sizes)
    most = _MOST_PIXELS if any(padding) else _MOST_PIXELS_UNPADDED
    return rows * columns <= most and weight.shape[1] >= _LEAST_INPUTS and weight[0, 0].numel() > 1


def _wastes_weights(side: int, kernel: int, step: int, border: int) -> bool:
    """Whether some weights of a kernel meet nothing but padding, in one direction; all sizes are in pixels."""
    begins = range(-border, side + border - kernel + 1, step)
    return not all(any(0 <= begin + place < side for begin in begins) for place in range(kernel))


class _Convolution(torch.autograd.Function):
    """A convolution of bfloat16 images with a bfloat16 weight, whose gradient is :func:`_weight_gradient`."""

    @staticmethod
    def forward(context: Any, images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        context.save_for_backward(images, weight)
        context.stride, context.padding = stride, padding
        return F.conv2d(images, weight, stride=stride, padding=padding)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (gradient,) = gradients
        images, weight = context.saved_tensors
        place = (context.stride, context.padding, (1, 1), False, (0, 0), 1)
        wanted = (context.needs_input_grad[0], False, False)
        of_images, *_ = torch.ops.aten.convolution_backward(gradient, images, weight, None, *place, wanted)
        return of_images, _weight_gradient(images, weight, gradient, context.stride, context.padding), None, None


def _weight_gradient(images: Tensor, weight: Tensor, gradient: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Return the gradient of ``weight``, of its shape and dtype; in chunks of the batch if the patches are many."""
    outputs, inputs, *kernel = weight.shape
    numbers = inputs * kernel[0] * kernel[1] * gradient.shape[2] * gradient.shape[3]
    total: Tensor | None = None
    at_once = max(1, _MOST_NUMBERS // numbers)
    for some, their in zip(images.split(at_once), gradient.split(at_once), strict=True):
        patches = _patches(some, (kernel[0], kernel[1]), stride, padding)
        product = their.permute(1, 0, 2, 3).reshape(outputs, -1) @ patches
        total = product if total is None else total.float() + product
    assert total is not None
    return total.to(weight.dtype).view(outputs, *kernel, inputs).permute(0, 3, 1, 2)


def _patches(images: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Return the patches of images [n, inputs, h, w] as rows, [n * rows * columns, k * k * inputs]."""
    rows, columns = padding
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows)).contiguous()
    windows = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])  # [n, rows, columns, inputs, k, k]
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, kernel[0] * kernel[1] * images.shape[1])
