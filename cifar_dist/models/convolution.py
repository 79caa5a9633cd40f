"""A convolution made by hand: patches laid out as a matrix, and one matrix product a group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Sides = int | Sequence[int]
"""One number for height and width, or one for each."""

_Model = TypeVar("_Model", bound=nn.Module)


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sides = 1,
    padding: Sides | str = 0,
    dilation: Sides = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.nn.functional.conv2d``, argument for argument, as image to column (Chellapilla et al., 2006).

    Args:
        input: float [N, C, H, W].
        weight: float [outputs, C / groups, kernel height, kernel width].
        bias: float [outputs].
        padding: zeros on each side, ``valid`` for none, or ``same`` for as many as keep H and W.

    Returns:
        float [N, outputs, H', W'].

    Raises:
        ValueError: another word as padding, or ``same`` with a stride.
    """
    outputs, kernel = len(weight), _pair(weight.shape[2:])
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (padding == "same" and stride != (1, 1)):
            raise ValueError(
                f"padding {padding!r} with stride {stride}: give numbers, 'valid', or 'same' with stride 1"
            )
        if padding == "same":  # where the kernel has an even side, one zero more at the bottom and the right
            tall, wide = (step * (taps - 1) for step, taps in zip(dilation, kernel, strict=True))
            input = F.pad(input, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
        padding = 0
    padding = _pair(padding)
    height, width = (
        (side + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for side, pad, step, taps, jump in zip(input.shape[2:], padding, dilation, kernel, stride, strict=True)
    )
    patches = F.unfold(input, kernel, dilation, padding, stride)  # [N, C * kernel, H' * W']
    products = torch.einsum(
        "ngkp,gok->ngop", patches.unflatten(1, (groups, -1)), weight.reshape(groups, outputs // groups, -1)
    )
    result = products.reshape(len(input), outputs, height, width)
    return result if bias is None else result + bias.to(result.dtype).view(-1, 1, 1)


class UnfoldConv2d(nn.Conv2d):
    """``nn.Conv2d`` computed by :func:`convolve`: same arguments, parameters and numbers, slower."""

    def forward(self, input: Tensor) -> Tensor:
        with _Unfold():
            return super().forward(input)


def by_hand(model: _Model) -> _Model:
    """Have every ``nn.Conv2d`` of ``model``, in place, computed by :func:`convolve`.

    Parameters, state-dict keys, hooks and everything else stay, so checkpoints of the two forms interchange. A layer
    of a class derived from ``nn.Conv2d`` (one that standardises its weights, say) goes on doing what it adds.

    Returns:
        the same model.
    """
    kinds: dict[type[nn.Conv2d], type[UnfoldConv2d]] = {nn.Conv2d: UnfoldConv2d}
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and not isinstance(layer, UnfoldConv2d):
            kind = type(layer)
            if kind not in kinds:
                kinds[kind] = type(f"Unfold{kind.__name__}", (UnfoldConv2d, kind), {})
            layer.__class__ = kinds[kind]
    return model


class _Unfold(TorchFunctionMode):
    """Inside it ``conv2d`` is :func:`convolve`. So ``nn.Conv2d`` itself sees to its padding modes."""

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        chosen: Callable[..., object] = convolve if function is F.conv2d else function
        return chosen(*args, **(kwargs or {}))


def _pair(sides: Sides) -> tuple[int, int]:
    if isinstance(sides, int):
        return sides, sides
    height, width = sides
    return height, width
