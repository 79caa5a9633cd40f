"""The receptive field: the extent of the input pixels that one position of a feature map can depend on.

The field is traced through the operations that a forward pass actually executes, so residual branches and control
flow need no special case: where branches join, it is the union of theirs. The arithmetic follows Araujo, Norris and
Sim, *Computing receptive fields of convolutional neural networks*, Distill 2019. Normalisation statistics are ignored.
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

# In addition to the operations that torch tags as pointwise: those that move no position of a map, provided that
# the sizes of the last two dimensions do not change.
_POSITION_PRESERVING = {
    *(_aten.cat, _aten.split, _aten.split_with_sizes, _aten.slice, _aten.view, _aten._unsafe_view, _aten.expand),
    *(_aten.detach, _aten.alias, _aten.as_strided, _aten._to_copy, _aten.hardswish, _aten.hardswish_),
    *(_aten.native_batch_norm, _aten.native_group_norm, _aten.native_dropout, _aten._prelu_kernel),
}


@dataclass(frozen=True)
class Span:
    """The pixels that position i depends on along one axis: ``i * jump + low`` to ``i * jump + high``.

    Padding counts as pixels. Infinite bounds mean the entire image, whatever i is.
    """

    jump: int
    low: float
    high: float

    @property
    def size(self) -> float:
        """Number of pixels, both ends included."""
        return self.high - self.low + 1

    def window(self, kernel: int, stride: int, padding: int, dilation: int) -> Span:
        """Return the span after a convolution or a pool."""
        high = dilation * (kernel - 1) - padding
        return Span(self.jump * stride, self.low - padding * self.jump, self.high + high * self.jump)

    def union(self, other: Span) -> Span:
        # A broadcast value has the coarse jump of the map it was pooled from; the smaller jump is the result's.
        return Span(min(self.jump, other.jump), min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Field:
    """The receptive field of a map whose last two dimensions, of at least four, are height and width."""

    height: Span
    width: Span

    @property
    def size(self) -> float:
        """The longer side, in pixels; infinite for the entire image."""
        return max(self.height.size, self.width.size)

    def window(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
    ) -> Field:
        """Return the field after a convolution or a pool; a single number applies to both axes, as in torch."""
        pairs = [(*values, *values)[:2] for values in (kernel, stride, padding, dilation)]
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = pairs
        return Field(self.height.window(kh, sh, ph, dh), self.width.window(kw, sw, pw, dw))

    def union(self, other: Field) -> Field:
        return Field(self.height.union(other.height), self.width.union(other.width))


class FieldTracer(TorchDispatchMode):
    """Tracks the receptive field of every map computed from the image given to :meth:`set_input`.

    Enter it under ``torch.no_grad``.

    Args:
        pools_as_strides: count only the stride of a pool, as if its kernel were 1, unless the pool is global.

    Attributes:
        largest: size of the largest field recorded so far, in pixels.
    """

    def __init__(self, *, pools_as_strides: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 1.0
        self._pools_as_strides = pools_as_strides
        self._fields = WeakTensorKeyDictionary()  # Tensor -> Field, or None where the field is unknown

    def set_input(self, image: Tensor) -> None:
        """Declare ``image``, [N, C, H, W], to be the input."""
        self._fields[image] = Field(Span(1, 0, 0), Span(1, 0, 0))

    def field_of(self, tensor: object) -> Field | None:
        """Return the field of ``tensor``; None where positions are mixed in a way that cannot be traced (attention)."""
        field: Field | None = self._fields.get(tensor) if isinstance(tensor, Tensor) else None
        return field

    def record_convolution(self, conv: nn.Conv2d, images: Tensor, output: Tensor) -> None:
        """Record that ``output`` is ``conv(images)``, whatever operations computed it."""
        field = self.field_of(images)
        if field is not None and not isinstance(conv.padding, str):
            self._record(output, field.window(conv.kernel_size, conv.stride, conv.padding, conv.dilation))

    def _record(self, output: Tensor, field: Field | None) -> None:
        self._fields[output] = field
        self.largest = max(self.largest, field.size if field else 0.0)

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        result: object = func(*args, **(kwargs or {}))
        inputs = [tensor for tensor in _tensors(args) if tensor in self._fields]
        if inputs:
            for output in _tensors(result):
                self._record(output, self._field(func, args, inputs, output))
        return result

    def _field(self, func: OpOverload, args: tuple[Any, ...], inputs: list[Tensor], output: Tensor) -> Field | None:
        operation, first = func.overloadpacket, self.field_of(inputs[0])
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
            return _pool_field(first, inputs[0], output)
        keeps = (
            operation in _POSITION_PRESERVING
            or torch.Tag.pointwise in func.tags
            or _keeps_height_and_width(operation, args)
        )
        fields = [_broadcast_field(self.field_of(tensor), tensor, output) for tensor in inputs] if keeps else []
        known = [field for field in fields if field is not None]
        return reduce(Field.union, known) if known and len(known) == len(fields) else None


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _pool_field(field: Field, before: Tensor, after: Tensor) -> Field | None:
    """Return the field after a pool to a given size; None for uneven windows, such as 7 to 3."""
    (height, width), (rows, columns) = before.shape[-2:], after.shape[-2:]
    if height % rows or width % columns:
        return _broadcast_field(field, before, after)
    kernel = (height // rows, width // columns)
    return field.window(kernel, kernel)


def _broadcast_field(field: Field | None, tensor: Tensor, output: Tensor) -> Field | None:
    """Return the field of ``tensor`` as part of ``output``; a single value broadcast over a map reaches everywhere."""
    if field is None or tensor.shape[-2:] == output.shape[-2:]:
        return field
    if max(tensor.shape[-2:]) > 1:
        return None
    everything = Span(field.height.jump, -math.inf, math.inf)
    return Field(everything, everything)


def _keeps_height_and_width(operation: object, args: tuple[Any, ...]) -> bool:
    """Whether a transpose or permute leaves the last two dimensions in place, as a channel shuffle does."""
    if operation not in (_aten.transpose, _aten.permute):
        return False
    tensor, *dims = args
    order = list(range(tensor.dim()))
    if operation is _aten.transpose:
        order[dims[0]], order[dims[1]] = order[dims[1]], order[dims[0]]
    else:
        order = [order[dim] for dim in dims[0]]
    return order[-2:] == [tensor.dim() - 2, tensor.dim() - 1]
