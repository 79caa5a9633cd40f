"""The layers of a network as tables, for people and as CSV: sizes and costs, or receptive fields."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf

from cifar_dist.formatting import percent, size
from cifar_dist.models.receptive_field import Field, Span
from cifar_dist.models.summary import Layer, Summary
from cifar_dist.tables import csv_text, markdown

_BYTES = 4  # of a float32 parameter
_DISPENSABLE = ("memory", "input", "share", "type", "field")  # columns, where there is no room for all


def layer_table(summary: Summary, width: int | None) -> str:
    """Tabulate the layers with their shapes, parameters, multiply-adds, memory of outputs, and receptive fields.

    Args:
        summary: of the network.
        width: of the terminal; None for a file or a pipe.
    """
    columns = ("input", "output", "kernel", "parameters", "share", "mult-adds", "memory", "field")
    rows = [
        (
            *(layer.name or "(itself)", layer.kind),
            *(_sides(layer.inputs), _sides(layer.outputs), _kernel(layer)),
            f"{layer.parameters:,}" if layer.parameters else "",
            percent(layer.parameters / summary.parameters, 1) if layer.parameters else "",
            _si(layer.multiply_adds) if layer.multiply_adds else "",
            size(layer.output_bytes) if layer.output_bytes else "",
            _pixels(layer.field.size) if layer.field else "",
        )
        for layer in summary.layers
    ]
    return markdown(("layer", "type", *columns), rows, columns, width=width, dispensable=_DISPENSABLE)


def field_table(summary: Summary, width: int | None) -> str:
    """Tabulate the convolutions and pools with the receptive field after each; ``width``: as of :func:`layer_table`."""
    columns = ("kernel", "stride", "jump", "field")
    rows = [
        (
            *(layer.name or "(itself)", layer.kind, _sides(layer.kernel), _sides(layer.stride)),
            *(str(layer.field.height.jump), _pixels(layer.field.size)),
        )
        for layer in summary.layers
        if layer.kernel and layer.field
    ]
    return markdown(("layer", "type", *columns), rows, columns, width=width)


def totals(summary: Summary, batch: int) -> list[tuple[str, str]]:
    """Return the sums of a network in words, each with its name; ``batch``: images in the summary's batch."""
    frozen = summary.parameters - summary.trainable
    parts = f"{summary.trainable:,} trainable, {frozen:,} frozen" if frozen else "all trainable"
    of = "an image" if batch == 1 else f"a batch of {batch}"
    field = "unknown: positions are mixed in a way that cannot be traced"
    if summary.receptive_field is not None:
        field = _pixels(summary.receptive_field, "the entire image", " pixels")
        others = (
            (summary.last_convolution, "at the last convolution"),
            (summary.pools_as_strides, "if pools between convolutions count only as strides"),
        )
        for pixels, what in others:
            if pixels is not None and pixels != summary.receptive_field:
                field += f"; {_pixels(pixels)} {what}"
    return [
        ("parameters", f"{summary.parameters:,} ({parts})"),
        ("mult-adds", f"{_si(summary.multiply_adds)} for {of}"),
        (
            "memory",
            f"{size(_BYTES * summary.parameters)} parameters, {size(summary.output_bytes)} outputs of {of}, in float32",
        ),
        ("receptive field", field),
    ]


def layers_csv(summary: Summary) -> str:
    """Format the layers with their shapes, parameters, multiply-adds and bytes in float32; fractions are exact."""
    columns = ("layer", "type", "input", "output", "kernel", "stride", "parameters", "share", "parameter_bytes")
    rows = (
        (
            *(layer.name, layer.kind, *map(_sides, (layer.inputs, layer.outputs, layer.kernel, layer.stride))),
            *(layer.parameters, layer.parameters / summary.parameters, _BYTES * layer.parameters),
            *(layer.multiply_adds, layer.output_bytes, _pixels(layer.field.size) if layer.field else ""),
        )
        for layer in summary.layers
    )
    return csv_text((*columns, "multiply_adds", "output_bytes", "receptive_field"), rows)


def receptive_field_csv(summary: Summary) -> str:
    """Format the convolutions and pools with the receptive field after each, and the sums that give it.

    The jump is the distance in pixels between two positions of the map:
    ``jump = jump before * stride`` and ``field = field before + (kernel - 1) * dilation * jump before``.
    Where branches join, the field before the next layer is the larger one of theirs.
    """
    columns = ("layer", "type", "kernel", "stride", "dilation", "jump_before", "jump", "jump_formula")
    rows = []
    for layer in summary.layers:
        if not (layer.kernel and layer.before and layer.field):
            continue
        axis = _longer_axis(layer.field)
        kernel, stride, dilation = (sides[axis] for sides in (layer.kernel, layer.stride, layer.dilation))
        before, after = _span(layer.before, axis), _span(layer.field, axis)
        rows.append(
            (
                *(layer.name, layer.kind, kernel, stride, dilation, before.jump, after.jump),
                f"{before.jump} * {stride} = {after.jump}",
                *(_pixels(before.size), _pixels(after.size)),
                f"{_pixels(before.size)} + ({kernel} - 1) * {dilation} * {before.jump} = {_pixels(after.size)}",
            )
        )
    return csv_text((*columns, "field_before", "field", "field_formula"), rows)


def _longer_axis(field: Field) -> int:
    """Return 0 if the field is at least as high as wide, else 1."""
    return 0 if field.height.size >= field.width.size else 1


def _span(field: Field, axis: int) -> Span:
    return (field.height, field.width)[axis]


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _kernel(layer: Layer) -> str:
    """Format a kernel as ``3x3``, or ``3x3/2`` at stride 2; the stride of a global pool is omitted."""
    strided = max(layer.stride, default=1) > 1 and max(layer.outputs[-2:]) > 1
    return _sides(layer.kernel) + (f"/{layer.stride[0]}" if strided else "")


def _pixels(pixels: float, everything: str = "all", unit: str = "") -> str:
    return everything if isinf(pixels) else f"{pixels:.0f}{unit}"


def _si(count: int) -> str:
    """Format a count with an SI prefix: ``194.18 G``."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return str(count)
