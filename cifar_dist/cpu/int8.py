"""Convolutions of 8-bit integers, for training on a CPU that has instructions for their products.

These have twice the rate of those of bfloat16, and four times that of float32. Images, weights and gradients are
rounded to 8 bits. The three products of a training step are those of integers, exact in 32 bits, and are scaled
afterwards (after Banner et al., *Scalable Methods for 8-bit Training of Neural Networks*, arXiv:1805.11046). Gradients
are rounded at random, up or down, so that the many that are smaller than one step keep their mean (Gupta et al., *Deep
Learning with Limited Numerical Precision*, arXiv:1502.02551).
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from cifar_dist.cpu.gradients import Pair, image_gradient, weight_gradient

_STEPS: Final = 254  # between the smallest and the largest value, one less than there are: rounding may add one
_MIDDLE: Final = 128  # between int8 and uint8, which oneDNN requires of images
_LEAST_SCALE: Final = 1e-30  # of images that are all 0
_BELOW_ONE: Final = 1 - 1e-5  # 127 plus more of it is 128 in float32, which 8 bits do not hold
_PERIOD: Final = 65521  # of the noise; a prime, so that a pixel's is not the same in every image
_AT_ONCE: Final = 4 * _PERIOD  # values that fit the cache


class Int8Convolution(torch.autograd.Function):
    """Convolves images, bfloat16 or float32 [n, inputs, h, w], with a weight [outputs, inputs, k, k].

    The result has the dtype of the images. The backward pass draws from torch's global generator.
    """

    @staticmethod
    def forward(context: Any, images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        rounded = _round(images)
        context.save_for_backward(rounded.integers, weight)  # half the memory of the images
        context.scale, context.zero = rounded.scale, rounded.zero
        context.stride, context.padding = stride, padding
        return _convolve(rounded, *_round_weight(weight), stride, padding, images.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (exact,) = gradients
        integers, weight = context.saved_tensors
        images = _Rounded(integers, context.scale, context.zero)
        gradient = _round_randomly(exact)
        kernel, stride, padding = weight.shape[2:], context.stride, context.padding
        of_weight = _weight_gradient(images, gradient, kernel, stride, padding)
        of_images: Tensor | None = None
        if context.needs_input_grad[0]:
            rows, columns = (size - 1 - border for size, border in zip(kernel, padding, strict=True))
            if stride == (1, 1) and min(rows, columns) >= 0:  # then it is a convolution
                turned = _round_weight(weight, turned=True)
                of_images = _convolve(gradient, *turned, (1, 1), (rows, columns), exact.dtype)
            else:
                of_images = image_gradient(images.shape, weight.to(exact.dtype), exact, stride, padding)
        return of_images, of_weight.to(weight.dtype), None, None


class _Rounded(NamedTuple):
    """Images or gradients as integers; a value is ``scale * (integer - zero)``."""

    integers: Tensor  # int8 [n, h, w, channels]
    scale: float
    zero: int

    @property
    def shape(self) -> torch.Size:
        """Of the images, [n, channels, h, w]."""
        return self.integers.permute(0, 3, 1, 2).shape


def _round(images: Tensor) -> _Rounded:
    """Round images [n, channels, h, w] to the nearest of 255 values, of which one is 0."""
    least, most = (float(extreme) for extreme in torch.aminmax(images.permute(0, 2, 3, 1)))
    scale = max((max(most, 0) - min(least, 0)) / _STEPS, _LEAST_SCALE)
    # If it is not finite, no result will be, whatever the integers are.
    zero = math.ceil(-min(least, 0) / scale) - _MIDDLE if math.isfinite(scale) else 0
    return _Rounded(_floor(images, scale, torch.full((min(_AT_ONCE, images.numel()),), zero + 0.5)), scale, zero)


def _round_randomly(gradient: Tensor) -> _Rounded:
    """Round gradients up or down, so that their mean is exact; 0 is 0."""
    most = max(abs(float(extreme)) for extreme in torch.aminmax(gradient.permute(0, 2, 3, 1)))
    scale = max(2 * most / _STEPS, _LEAST_SCALE)
    noise = torch.rand(min(_PERIOD, gradient.numel())).mul_(_BELOW_ONE).repeat(_AT_ONCE // _PERIOD)
    return _Rounded(_floor(gradient, scale, noise), scale, 0)


def _floor(images: Tensor, scale: float, added: Tensor) -> Tensor:
    """Return ``floor(images / scale + added)``, int8 [n, h, w, channels]."""
    values = images.permute(0, 2, 3, 1).contiguous()
    integers = torch.empty(values.shape, dtype=torch.int8)
    for some, into in zip(values.view(-1).split(_AT_ONCE), integers.view(-1).split(_AT_ONCE), strict=True):
        into.copy_(torch.add(added[: len(some)], some, alpha=1 / scale).floor_())
    return integers


def _round_weight(weight: Tensor, *, turned: bool = False) -> tuple[Tensor, Tensor]:
    """Return a weight as int8, and the scales of its outputs.

    Args:
        weight: [outputs, inputs, k, k].
        turned: return that of the gradient of the images, [inputs, outputs, k, k].
    """
    values = weight.permute(0, 2, 3, 1).float()  # as it lies in memory, where images are channels last
    most = values.abs().amax((0, 1, 2) if turned else (1, 2, 3), keepdim=True)
    scales = most.clamp_(min=_LEAST_SCALE) / 127
    integers = (values / scales).round_().to(torch.int8).permute(0, 3, 1, 2)
    return integers.flip(2, 3).transpose(0, 1) if turned else integers, scales.view(-1)


def _convolve(
    images: _Rounded, weight: Tensor, scales: Tensor, stride: Pair, padding: Pair, dtype: torch.dtype
) -> Tensor:
    """Convolve with a weight that :func:`_round_weight` returned, to ``dtype`` [n, outputs, rows, columns]."""
    unsigned = images.integers.view(torch.uint8).bitwise_xor(_MIDDLE).permute(0, 3, 1, 2)  # adds 128
    rounded, place = (images.scale, images.zero + _MIDDLE), (stride, padding, (1, 1), 1)
    packed = torch.ops.onednn.qconv_prepack(weight, scales, *rounded, *place, images.shape)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    exact = (1.0, 0, dtype, "none", (), "")  # a result that is not rounded to 8 bits again
    convolved: Tensor = torch.ops.onednn.qconv2d_pointwise(
        unsigned, *rounded, packed, scales, zeros, None, *place, *exact
    )
    return convolved


def _weight_gradient(images: _Rounded, gradient: _Rounded, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Return the gradient of a weight, float32 [outputs, inputs, k, k]."""
    products = weight_gradient(
        images.integers, gradient.integers, kernel, stride, padding, multiply=torch._int_mm, zero=images.zero
    )
    pixels = gradient.integers.flatten(0, 2)
    sums = torch._int_mm(torch.ones(1, len(pixels), dtype=torch.int8), pixels)  # faster than sum
    return (products - images.zero * sums.view(-1, 1, 1, 1)) * (images.scale * gradient.scale)
