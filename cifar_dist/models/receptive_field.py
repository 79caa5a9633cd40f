"""The receptive field: how far apart the input pixels lie that one position of a feature map can depend on.

Followed through the operations that a forward pass really makes, so residual branches and control flow need no
care of their own: where paths meet, the field is what any of them sees. Arithmetic after Araujo, Norris and Sim,
*Computing receptive fields of convolutional neural networks*, Distill 2019. Statistics of normalisation do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

_aten = torch.ops.aten

# Besides what torch tags as pointwise: operations that leave every position of a map where it is, as long as the
# last two dimensions keep their sizes.
_KEEPING = {
    *(_aten.cat, _aten.split, _aten.split_with_sizes, _aten.slice, _aten.view, _aten._unsafe_view, _aten.expand),
    *(_aten.detach, _aten.alias, _aten.as_strided, _aten._to_copy, _aten.hardswish, _aten.hardswish_),
    *(_aten.native_batch_norm, _aten.native_group_norm, _aten.native_dropout, _aten._prelu_kernel),
}


@dataclass(frozen=True)
class Span:
    """Along one axis, position i of a map depends on pixels ``i * jump + low`` to ``i * jump + high``.

    Padding counts as pixels. Infinite bounds: all of the image, wherever i is.
    """

    jump: int
    low: float
    high: float

    @property
    def size(self) -> float:
        """Pixels, both ends included."""
        return self.high - self.low + 1

    def window(self, kernel: int, stride: int, padding: int, dilation: int) -> Span:
        """Through a convolution or a pool."""
        high = dilation * (kernel - 1) - padding
        return Span(self.jump * stride, self.low - padding * self.jump, self.high + high * self.jump)

    def union(self, other: Span) -> Span:
        # A value seen everywhere keeps the coarse jump of its pooled map; the other's is the map's.
        return Span(min(self.jump, other.jump), min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Field:
    """Of the positions of a map; its height and width are the last two of at least four dimensions."""

    height: Span
    width: Span

    @property
    def size(self) -> float:
        """The longer side, in pixels; infinite for all of the image."""
        return max(self.height.size, self.width.size)

    def window(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
    ) -> Field:
        """Through a convolution or a pool; one number may stand for both axes, as in torch."""
        pairs = [(*values, *values)[:2] for values in (kernel, stride, padding, dilation)]
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = pairs
        return Field(self.height.window(kh, sh, ph, dh), self.width.window(kw, sw, pw, dw))

    def union(self, other: Field) -> Field:
        return Field(self.height.union(other.height), self.width.union(other.width))


class FieldTracer(TorchDispatchMode):
    """Entered under ``torch.no_grad``: every map that is made of :meth:`start`'s image gets a field.

    Args:
        pools_as_strides: count a pool for its stride alone, as if its kernel were 1, unless it is a global one.

    Attributes:
        largest: size of the largest known field so far, in pixels.
    """

    def __init__(self, *, pools_as_strides: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 1.0
        self._pools_as_strides = pools_as_strides
        self._fields = WeakTensorKeyDictionary()  # to None where the field is not known

    def start(self, image: Tensor) -> None:
        """``image``, [N, C, H, W], is the input."""
        self._fields[image] = Field(Span(1, 0, 0), Span(1, 0, 0))

    def of(self, tensor: object) -> Field | None:
        """None where positions are rearranged in a way that is not followed, as in attention."""
        field: Field | None = self._fields.get(tensor) if isinstance(tensor, Tensor) else None
        return field

    def convolved(self, conv: nn.Conv2d, images: Tensor, output: Tensor) -> None:
        """``output`` is ``conv(images)``, by whatever operations it was computed."""
        field = self.of(images)
        if field is not None and not isinstance(conv.padding, str):
            self._keep(output, field.window(conv.kernel_size, conv.stride, conv.padding, conv.dilation))

    def _keep(self, output: Tensor, field: Field | None) -> None:
        self._fields[output] = field
        self.largest = max(self.largest, field.size if field else 0.0)

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        result: object = func(*args, **(kwargs or {}))
        inputs = [tensor for tensor in _tensors(args) if tensor in self._fields]
        if inputs:
            for output in _tensors(result):
                self._keep(output, self._field(func, args, inputs, output))
        return result

    def _field(self, func: OpOverload, args: tuple[Any, ...], inputs: list[Tensor], output: Tensor) -> Field | None:
        operation, first = func.overloadpacket, self.of(inputs[0])
        if first is None or any(tensor.dim() < 4 for tensor in (*inputs, output)):
            return None
        if operation is _aten.convolution:
            _, weight, _, stride, padding, dilation, transposed, *_ = args
            return None if transposed else first.window(weight.shape[2:], stride, padding, dilation)
        if operation is _aten.constant_pad_nd:
            left, _, top, _ = (*args[1], 0, 0)[:4]
            return first.window((1,), (1,), (top, left))
        if operation in (_aten.max_pool2d_with_indices, _aten.avg_pool2d):
            kernel, stride, padding = args[1], args[2] if args[2:] else (), args[3] if args[3:] else (0,)
            dilation = args[4] if args[4:] and operation is _aten.max_pool2d_with_indices else (1,)
            if self._pools_as_strides and max(output.shape[-2:]) > 1:
                return first.window((1,), stride or kernel)
            return first.window(kernel, stride or kernel, padding, dilation)
        if operation in (_aten._adaptive_avg_pool2d, _aten.adaptive_max_pool2d, _aten.mean):
            return _pooled(first, inputs[0], output)
        keeps = operation in _KEEPING or torch.Tag.pointwise in func.tags or _swaps_others(operation, args)
        fields = [_spread(self.of(tensor), tensor, output) for tensor in inputs] if keeps else []
        known = [field for field in fields if field is not None]
        return reduce(Field.union, known) if known and len(known) == len(fields) else None


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _pooled(field: Field, before: Tensor, after: Tensor) -> Field | None:
    """Through a pool given by the size of its result; uneven windows, as 7 pooled to 3, are not followed."""
    (height, width), (rows, columns) = before.shape[-2:], after.shape[-2:]
    if height % rows or width % columns:
        return _spread(field, before, after)
    kernel = (height // rows, width // columns)
    return field.window(kernel, kernel)


def _spread(field: Field | None, tensor: Tensor, output: Tensor) -> Field | None:
    """The field of ``tensor`` where it becomes a part of ``output``: one value for a whole map is seen everywhere."""
    if field is None or tensor.shape[-2:] == output.shape[-2:]:
        return field
    if max(tensor.shape[-2:]) > 1:
        return None
    everything = Span(field.height.jump, -math.inf, math.inf)
    return Field(everything, everything)


def _swaps_others(operation: object, args: tuple[Any, ...]) -> bool:
    """Whether dimensions are swapped and the last two are not among them, as when channels are shuffled."""
    if operation not in (_aten.transpose, _aten.permute):
        return False
    tensor, *dims = args
    order = list(range(tensor.dim()))
    if operation is _aten.transpose:
        order[dims[0]], order[dims[1]] = order[dims[1]], order[dims[0]]
    else:
        order = [order[dim] for dim in dims[0]]
    return order[-2:] == [tensor.dim() - 2, tensor.dim() - 1]
