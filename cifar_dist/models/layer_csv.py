"""The layers of a network as CSV, for spreadsheets: sizes and costs, or receptive fields with their formulae."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf

from cifar_dist.formatting import csv_text
from cifar_dist.models.receptive_field import Field, Span
from cifar_dist.models.summary import Summary

_BYTES = 4  # of a float32 parameter


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


def _pixels(size: float) -> str:
    return "all" if isinf(size) else f"{size:.0f}"
