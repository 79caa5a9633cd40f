"""Convolutions of a network that is trained on a CPU: faster than oneDNN's, or right where those are wrong.

They may be of 8-bit integers, see :mod:`cifar_dist.cpu.int8`. In bfloat16, oneDNN computes the weight gradients of
convolutions whose output has few pixels at half the speed of everything else, or at a tenth with AMX; here they are a
product of matrices, or those of several images side by side. And it leaves the gradients of weights that meet nothing
but padding uninitialised (torch 2.15), as are most of a 3x3 convolution of stride 2 on 1x1 pixels; here they are 0.
With AMX, some strided convolutions are wrong; here they are computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.cpu.gradients import Pair, image_gradient, weight_gradient, weight_gradient_side_by_side
from cifar_dist.cpu.instructions import has_amx
from cifar_dist.cpu.int8 import Int8Convolution

_HAS_AMX: Final = has_amx()  # a constant, which a compiler of networks cannot ask for

_MOST_PIXELS: Final = 16  # of the output; of more, oneDNN is as fast, or faster
_MOST_PIXELS_UNPADDED: Final = 36  # without padding, which the patches need a copy of the input for
_MOST_COLUMNS_WITH_AMX: Final = 9
_LEAST_INPUTS: Final = 64

# Of a training step in int8 on a core of an AMD EPYC with VNNI, in nanoseconds: what it saves, and what rounding takes.
_PER_PRODUCT: Final = 0.007
_PER_WEIGHT: Final = 12.0
_PER_VALUE: Final = 1.5
_PER_CONVOLUTION: Final = 3e5

_in_int8: ContextVar[bool] = ContextVar("in_int8", default=False)


@contextmanager
def convolutions_in_int8(enabled: bool) -> Iterator[None]:
    """Compute convolutions in 8-bit integers inside, and later their gradients, where they are trained on a CPU."""
    token = _in_int8.set(enabled)
    try:
        yield
    finally:
        _in_int8.reset(token)


def replace_convolutions(module: nn.Module) -> None:
    """Compute the convolutions of a network with :func:`conv2d`. In place; its state dict keeps its keys and shapes.

    Subclasses of torch's convolutions, as parametrizations make them, are among these unless they convolve otherwise.
    """
    for conv in module.modules():
        if not isinstance(conv, nn.Conv2d) or type(conv)._conv_forward is not nn.Conv2d._conv_forward:
            continue
        if (padding := _padding_of(conv)) is not None:
            (rows, columns), (down, right) = conv.stride, conv.dilation
            place = partial(conv2d, stride=(rows, columns), padding=padding, dilation=(down, right))
            conv._conv_forward = partial(place, groups=conv.groups)  # type: ignore[method-assign]


def _padding_of(conv: nn.Conv2d) -> Pair | None:
    """Return the zeros on each side of the images, (rows, columns); None if the sides or what pads them differ."""
    if conv.padding_mode != "zeros":
        return None
    if conv.padding == "same":
        down, right = (step * (side - 1) for step, side in zip(conv.dilation, conv.kernel_size, strict=True))
        return None if down % 2 or right % 2 else (down // 2, right // 2)
    rows, columns = (0, 0) if isinstance(conv.padding, str) else conv.padding
    return rows, columns


def conv2d(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolve as torch's function does, or in 8-bit integers, see :func:`convolutions_in_int8`.

    Args:
        images: float [n, inputs, h, w].
        weight: float [outputs, inputs / groups, k, k].
        bias: float [outputs].
        stride, padding, dilation: (rows, columns), in pixels.
        groups: of channels, each convolved by itself.

    Returns:
        float [n, outputs, rows, columns]; bfloat16 under autocast to it.
    """
    place = (stride, padding, dilation, groups)
    if images.device.type != "cpu" or images.ndim != 4:
        return F.conv2d(images, weight, bias, *place)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
    if dtype == torch.bfloat16 and _HAS_AMX and _errs_with_amx(images, weight, stride, padding, dilation):
        with torch.autocast("cpu", enabled=False):
            exact = F.conv2d(images.float(), weight.float(), None if bias is None else bias.float(), *place)
        return exact.to(dtype)
    if weight.requires_grad and torch.is_grad_enabled():
        sizes = zip(images.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        begins = [_begins(*size) for size in sizes]
        rows, columns = map(len, begins)
        is_plain = bias is None and groups == 1 and dilation == (1, 1) and not torch.compiler.is_compiling()
        if is_plain and _in_int8.get() and _gains_in_int8(len(images) * rows * columns, weight):
            return _convolve(Int8Convolution, images.to(dtype), weight, stride, padding)
        if dtype == torch.bfloat16:
            weight = _without_waste(weight, images.shape[2:], begins, dilation)
            if is_plain and _gains(rows, columns, weight, stride, padding):
                return _convolve(_Convolution, images.to(dtype), weight.to(dtype), stride, padding)
    return F.conv2d(images, weight, bias, *place)


def _errs_with_amx(images: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> bool:
    """Whether oneDNN may convolve wrongly: some of stride 2 or more in a row, of which only the usual ones are known.

    Kernels of 4x4 of stride 4 over 16 channels, or 3x3 of stride 2 on rows of one or two pixels, give other numbers,
    or uninitialised ones (oneDNN 3.13).
    """
    if stride[1] == 1 or weight.shape[2:] == (1, 1):
        return False
    is_usual = weight.shape[2:] == (3, 3) and (stride, padding, dilation) == ((2, 2), (1, 1), (1, 1))
    return not is_usual or images.shape[3] <= 2


def _convolve(
    function: type[torch.autograd.Function], images: Tensor, weight: Tensor, stride: Pair, padding: Pair
) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        convolved: Tensor = function.apply(images, weight, stride, padding)
    return convolved


def _begins(side: int, kernel: int, step: int, border: int, dilation: int) -> range:
    """Where a kernel is applied, in one direction: the place in the images of its first number. In pixels."""
    return range(-border, side + border - (kernel - 1) * dilation, step)


def _gains_in_int8(pixels: int, weight: Tensor) -> bool:
    """Whether a convolution with so many pixels of output, in all images, takes less time in 8-bit integers."""
    values = pixels * (weight.shape[0] + weight.shape[1])  # to round: images and gradients
    spent = _PER_WEIGHT * weight.numel() + _PER_VALUE * values + _PER_CONVOLUTION
    return _PER_PRODUCT * pixels * weight.numel() > spent


def _gains(rows: int, columns: int, weight: Tensor, stride: Pair, padding: Pair) -> bool:
    """Whether the weight gradient of a convolution with this output takes less time than oneDNN's."""
    is_product = weight[0, 0].numel() == 1  # as it is, which oneDNN computes well
    if weight.shape[1] < _LEAST_INPUTS:
        return False
    if _HAS_AMX:
        fits = columns <= _MOST_COLUMNS_WITH_AMX and 2 * padding[1] < weight.shape[3]
        return fits and not (is_product and stride[1] == 1)
    return rows * columns <= (_MOST_PIXELS if any(padding) else _MOST_PIXELS_UNPADDED) and not is_product


def _without_waste(weight: Tensor, sides: Sequence[int], begins: Sequence[range], dilation: Pair) -> Tensor:
    """Return a weight whose gradient is 0 where it meets nothing but padding."""
    rows, columns = map(_meets_pixels, sides, weight.shape[2:], begins, dilation)
    if all(rows) and all(columns):
        return weight
    wasted = ~(torch.tensor(rows)[:, None] & torch.tensor(columns))
    return weight.masked_fill(wasted, 0)  # which changes nothing but the gradient


def _meets_pixels(side: int, kernel: int, begins: range, dilation: int) -> tuple[bool, ...]:
    """Which numbers of a kernel ever meet a pixel, in one direction."""
    return tuple(any(0 <= begin + place * dilation < side for begin in begins) for place in range(kernel))


class _Convolution(torch.autograd.Function):
    """A convolution of bfloat16 images with a bfloat16 weight, whose gradient oneDNN computes slowly."""

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
        compute = weight_gradient_side_by_side if _HAS_AMX else partial(weight_gradient, multiply=torch.matmul)
        return of_images, compute(*rows, weight.shape[2:], *place).to(weight.dtype), None, None
