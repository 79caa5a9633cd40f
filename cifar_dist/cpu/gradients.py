"""The gradients of a convolution: of its images by oneDNN, of its weight as one product of matrices or of wide images.

The product is that of the gradients of the output, [outputs, n * h * w], and the patches of the input,
[n * h * w, k * k * inputs] (Chellapilla et al., *High Performance Convolutional Neural Networks for Document
Processing*, 2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_BYTES: Final = 2**22  # of patches at a time: more would leave the cache
_COLUMNS: Final = 96  # of images side by side: three times as many as a tile of AMX multiplies

Pair = tuple[int, int]


def image_gradient(shape: Sequence[int], weight: Tensor, gradient: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Return the gradient of images of ``shape``, [n, inputs, h, w].

    Args:
        shape: of the images.
        weight: [outputs, inputs, k, k], of the dtype of ``gradient``.
        gradient: of the output, [n, outputs, rows, columns].
        stride, padding: (rows, columns), in pixels.
    """
    images = gradient.new_empty(()).expand(shape)  # whose values do not matter
    place = (stride, padding, (1, 1), False, (0, 0), 1)
    found, *_ = torch.ops.aten.convolution_backward(gradient, images, weight, None, *place, (True, False, False))
    of_images: Tensor = found
    return of_images


def weight_gradient(
    images: Tensor,
    gradient: Tensor,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    *,
    multiply: Callable[[Tensor, Tensor], Tensor],
    zero: int = 0,
) -> Tensor:
    """Return the gradient of a weight, float32 [outputs, inputs, k, k].

    Args:
        images: [n, h, w, inputs].
        gradient: of the output, [n, rows, columns, outputs].
        kernel, stride, padding: (rows, columns), in pixels.
        multiply: computes a product of matrices.
        zero: what pads the images.
    """
    outputs, inputs = gradient.shape[3], images.shape[3]
    bytes_of_one = gradient.shape[1] * gradient.shape[2] * kernel[0] * kernel[1] * inputs * images.element_size()
    at_once = max(1, _MOST_BYTES // bytes_of_one)
    total = torch.zeros(outputs, kernel[0] * kernel[1] * inputs)
    for some, their in zip(images.split(at_once), gradient.split(at_once), strict=True):
        total += multiply(their.reshape(-1, outputs).t(), _patches(some, kernel, stride, padding, zero))
    return total.view(outputs, *kernel, inputs).permute(0, 3, 1, 2)


def weight_gradient_side_by_side(images: Tensor, gradient: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Return the gradient of a weight by oneDNN, of the dtype of ``images``, [outputs, inputs, k, k].

    AMX multiplies 32 pixels of a row at a time. Small images have fewer: several become one, with zeros between them.

    Args:
        images: [n, h, w, inputs].
        gradient: of the output, [n, rows, columns, outputs].
        kernel, stride, padding: (rows, columns), in pixels; a kernel is wider than the padding on both of its sides.
    """
    width = math.ceil((images.shape[2] + padding[1]) / stride[1]) * stride[1]
    count = max(1, min(_COLUMNS // width, len(images)))
    wide = _side_by_side(images, count, width)
    columns = (count * width + 2 * padding[1] - kernel[1]) // stride[1] + 1  # the others are zeros
    of_wide = _side_by_side(gradient, count, width // stride[1])[:, :, :columns]
    weight = images.new_empty(gradient.shape[3], *kernel, images.shape[3])  # whose values do not matter
    place = (stride, padding, (1, 1), False, (0, 0), 1)
    moved = [rows.permute(0, 3, 1, 2) for rows in (of_wide, wide, weight)]
    _, found, _ = torch.ops.aten.convolution_backward(*moved, None, *place, (False, True, False))
    of_weight: Tensor = found
    return of_weight


def _side_by_side(images: Tensor, count: int, width: int) -> Tensor:
    """Return images [n, h, w, c] as [ceil(n / count), h, count * width, c], with zeros on the right of each."""
    n, height, columns, channels = images.shape
    full, rest = divmod(n, count)
    wide = images.new_empty(full + (rest > 0), height, count, width, channels)
    wide[..., columns:, :] = 0
    wide[full:, :, rest:] = 0
    places = wide.transpose(1, 2)[..., :columns, :]  # [n / count, count, h, w, c]
    places[:full] = images[: full * count].unflatten(0, (full, count))
    places[full:, :rest] = images[full * count :]
    return wide.flatten(2, 3)


def _patches(images: Tensor, kernel: Pair, stride: Pair, padding: Pair, zero: int) -> Tensor:
    """Return the patches of images [n, h, w, inputs] as rows, [n * rows * columns, k * k * inputs]."""
    top, left = padding
    padded = F.pad(images, (0, 0, left, left, top, top), value=zero)
    windows = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])  # [n, rows, columns, inputs, k, k]
    rows_of_patches = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, kernel[0] * kernel[1] * images.shape[3])
    return rows_of_patches.contiguous()  # of one row of pixels, they are a view whose rows overlap
