"""A network layer by layer: shapes, parameters, multiply-adds and receptive fields, from one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf, prod

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cifar_dist.models.receptive_field import Field, FieldTracer

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One call of a module that has parameters, computes products, or changes the map's shape or receptive field.

    Attributes:
        name: dotted, as in the state dict; empty for what the network computes outside its modules.
        kind: class name of the module.
        inputs, outputs: shapes without the batch dimension; empty if the value is not a tensor.
        kernel, stride, dilation: (height, width) of a convolution or pool; empty for other layers.
        parameters: count, excluding those of nested layers and those already counted by an earlier layer.
        multiply_adds: of its convolutions and matrix products, for the entire batch. Biases and element-wise
            operations are not counted.
        output_bytes: of its outputs in float32, for the entire batch.
        before: receptive field of its input, as ``field``.
        field: receptive field of its output; None if the output is not a map or its field cannot be traced.
    """

    name: str
    kind: str
    inputs: Shape
    outputs: Shape
    kernel: Shape
    stride: Shape
    dilation: Shape
    parameters: int
    multiply_adds: int
    output_bytes: int
    before: Field | None
    field: Field | None


@dataclass(frozen=True)
class Summary:
    """The layers and totals of a network for a batch of images of one shape.

    Attributes:
        layers: in call order.
        parameters, trainable: number of all parameters, and of those that require a gradient.
        output_bytes: size of the float32 outputs of all innermost modules: roughly what training keeps per batch.
        last_convolution: receptive field of the last convolution, the longer side in pixels; infinite for the entire
            image, None if unknown.
        receptive_field: the same after the final pool, if there is one.
        pools_as_strides: the same by another common convention: pools between convolutions count as if their kernel
            were 1, and the global pool counts with its kernel.
    """

    layers: tuple[Layer, ...]
    parameters: int
    trainable: int
    output_bytes: int
    last_convolution: float | None
    receptive_field: float | None
    pools_as_strides: float | None

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all layers, for the entire batch."""
        return sum(layer.multiply_adds for layer in self.layers)


def summarize(model: nn.Module, shape: tuple[int, int, int], batch: int = 1) -> Summary:
    """Summarise the layers of ``model`` in evaluation mode.

    Args:
        model: takes float [N, C, H, W]. On the ``meta`` device only shapes are computed.
        shape: (height, width, channels) of an image.
        batch: images in the batch.
    """
    fields = FieldTracer()
    calls = _trace_calls(model, shape, fields)
    strides = FieldTracer(pools_as_strides=True)
    _trace_calls(model, shape, strides)
    convolved = [call.after.size for call in calls if isinstance(call.module, nn.Conv2d) and call.after]
    # Flat outputs have no field. A map without one could not be traced, which matters unless the field is infinite.
    untraced = any(call.after is None and len(call.outputs) > 1 for call in calls)
    known = not untraced or fields.largest == inf
    parameters = list(model.parameters())
    return Summary(
        layers=tuple(_layers(calls, batch)),
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        output_bytes=sum(4 * batch * prod(call.outputs) for call in calls if call.outputs and not call.inner),
        last_convolution=max(convolved, default=None) if known else None,
        receptive_field=fields.largest if known else None,
        pools_as_strides=strides.largest if known else None,
    )


@dataclass
class _Call:
    """One call of a module, filled in while it runs. A multiply-add counts as two ``flops``."""

    name: str
    module: nn.Module
    inputs: Shape
    before: Field | None
    flops_before: int
    flops: int = 0
    outputs: Shape = ()
    after: Field | None = None
    inner: tuple[_Call, ...] = ()


def _trace_calls(model: nn.Module, shape: tuple[int, int, int], fields: FieldTracer) -> list[_Call]:
    """Return all module calls of one image's forward pass, in the order in which they began."""
    calls: list[_Call] = []
    running: list[_Call] = []
    counter = FlopCounterMode(display=False)

    def enter(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[object, ...]) -> None:
            images = inputs[0] if inputs else None
            call = _Call(name, module, _shape(images), fields.field_of(images), counter.get_total_flops())
            if running:
                running[-1].inner += (call,)
            running.append(call)
            calls.append(call)

        return hook

    def leave(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        call = running.pop()
        if isinstance(module, nn.Conv2d) and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            fields.record_convolution(module, inputs[0], output)
        call.flops = counter.get_total_flops() - call.flops_before
        call.outputs, call.after = _shape(output), fields.field_of(output)

    height, width, channels = shape
    images = torch.zeros(1, channels, height, width, device=next(model.parameters()).device)
    training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        for context in (torch.no_grad(), counter, fields):
            stack.enter_context(context)
        fields.set_input(images)
        model(images)
    return calls


def _shape(tensor: object) -> Shape:
    """Return the shape without the batch dimension."""
    return tuple(tensor.shape[1:]) if isinstance(tensor, Tensor) else ()


def _layers(calls: list[_Call], batch: int) -> Iterator[Layer]:
    called = {id(call.module) for call in calls}
    counted: set[int] = set()
    for call in calls:
        sizes = {id(p): p.numel() for p in _owned_parameters(call.module, called) if id(p) not in counted}
        counted |= sizes.keys()
        flops = call.flops - sum(inner.flops for inner in call.inner)
        changes = not call.inner and (call.inputs != call.outputs or call.before != call.after)
        if sizes or flops or changes:
            kernel, stride, dilation = _window(call)
            yield Layer(
                name=call.name,
                kind=type(call.module).__name__,
                inputs=call.inputs,
                outputs=call.outputs,
                kernel=kernel,
                stride=stride,
                dilation=dilation,
                parameters=sum(sizes.values()),
                multiply_adds=batch * flops // 2,
                output_bytes=4 * batch * prod(call.outputs) if call.outputs else 0,
                before=call.before,
                field=call.after,
            )


def _owned_parameters(module: nn.Module, called: set[int]) -> Iterator[nn.Parameter]:
    """Yield the parameters of ``module`` and of its uncalled children: attention never calls its output layer."""
    yield from module.parameters(recurse=False)
    for child in module.children():
        if id(child) not in called:
            yield from _owned_parameters(child, called)


def _window(call: _Call) -> tuple[Shape, Shape, Shape]:
    """Return kernel, stride and dilation, each (height, width); for an adaptive pool, the equivalent ones."""
    module = call.module
    if isinstance(module, nn.Conv2d | nn.MaxPool2d):
        return _pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)
    if isinstance(module, nn.AvgPool2d):
        return _pair(module.kernel_size), _pair(module.stride), (1, 1)
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        sides = list(zip(call.inputs[-2:], call.outputs[-2:], strict=True))
        if not any(before % after for before, after in sides):
            kernel = tuple(before // after for before, after in sides)
            return kernel, kernel, (1, 1)
    return (), (), ()


def _pair(sides: int | tuple[int, ...]) -> Shape:
    return (sides, sides) if isinstance(sides, int) else tuple(sides)
