"""A convolution written by hand: unfold the patches into a matrix, then one matrix product per group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Sides = int | Sequence[int]
"""One number for both height and width, or one for each."""

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
    """Compute ``torch.nn.functional.conv2d``, argument for argument, by im2col (Chellapilla et al., 2006).

    Args:
        input: float [N, C, H, W].
        weight: float [outputs, C / groups, kernel height, kernel width].
        bias: float [outputs].
        padding: zeros on each side, ``valid`` for none, or ``same`` to preserve H and W.

    Returns:
        float [N, outputs, H', W'].

    Raises:
        ValueError: ``padding`` is another word, or ``same`` with a stride above 1.
    """
    outputs, kernel = len(weight), _pair(weight.shape[2:])
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (padding == "same" and stride != (1, 1)):
            raise ValueError(
                f"padding {padding!r} does not work with stride {stride}; use numbers, 'valid', or 'same' with stride 1"
            )
        if padding == "same":  # an even kernel gets its extra zero at the bottom and on the right
            rows, columns = (spacing * (taps - 1) for spacing, taps in zip(dilation, kernel, strict=True))
            input = F.pad(input, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        padding = 0
    padding = _pair(padding)
    height, width = (
        (side + 2 * pad - spacing * (taps - 1) - 1) // jump + 1
        for side, pad, spacing, taps, jump in zip(input.shape[2:], padding, dilation, kernel, stride, strict=True)
    )
    patches = F.unfold(input, kernel, dilation, padding, stride)  # [N, C * kernel, H' * W']
    products = torch.einsum(
        "ngkp,gok->ngop", patches.unflatten(1, (groups, -1)), weight.reshape(groups, outputs // groups, -1)
    )
    result: Tensor = products.flatten(1, 2).unflatten(2, (height, width))  # no len(input), which a trace would fix
    return result if bias is None else result + bias.to(result.dtype).view(-1, 1, 1)


class UnfoldConv2d(nn.Conv2d):
    """``nn.Conv2d`` computed by :func:`convolve`: same arguments, parameters and results, but slower."""

    def forward(self, input: Tensor) -> Tensor:
        with _UnfoldMode():
            return super().forward(input)


def use_unfold_convolutions(model: _Model) -> _Model:
    """Convert every ``nn.Conv2d`` of ``model``, in place, to compute with :func:`convolve`.

    Parameters, state-dict keys and hooks are unchanged, so checkpoints are interchangeable. A subclass of
    ``nn.Conv2d`` (one that standardises its weights, say) keeps the behaviour it adds.

    Returns:
        ``model`` itself.
    """
    kinds: dict[type[nn.Conv2d], type[UnfoldConv2d]] = {nn.Conv2d: UnfoldConv2d}
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and not isinstance(layer, UnfoldConv2d):
            kind = type(layer)
            if kind not in kinds:
                kinds[kind] = type(f"Unfold{kind.__name__}", (UnfoldConv2d, kind), {})
            layer.__class__ = kinds[kind]
    return model


class _UnfoldMode(TorchFunctionMode):
    """Replace ``F.conv2d`` by :func:`convolve` within the context; ``nn.Conv2d`` still handles its padding modes."""

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
