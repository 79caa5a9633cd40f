"""How fast a device computes: the arithmetic of a network, and what large matrix products reach."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn

from cifar_dist.distributed.device_time import time_on

_SIDE = {"cpu": 1024, "cuda": 4096}
_REPEATS = 5


def blueprint_of(module: nn.Module) -> nn.Module:
    """Return a copy of a network on the ``meta`` device: its shapes without its values.

    Copied before an engine wraps the network: hooks of an engine, and synchronised batch norms, wait in a forward pass
    for the other processes.
    """
    without_values: dict[int, object] = {}
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        without_values[id(tensor)] = (
            nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(module, without_values)


def operations_per_image(blueprint: nn.Module, shape: tuple[int, int, int]) -> float | None:
    """Count floating-point operations of one image's forward and backward pass; None for a network that hides them.

    A multiply-add counts as two. Only shapes are computed.

    Args:
        blueprint: of the network, from :func:`blueprint_of`; it is not changed.
        shape: (height, width, channels) of an image.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    images, (height, width, channels) = 64, shape  # a network may compute other gradients for a share of a batch
    try:
        trial = copy.deepcopy(blueprint).train()
        with FlopCounterMode(display=False) as counter, torch.random.fork_rng(devices=[]):
            trial(torch.empty(images, channels, height, width, device="meta")).sum().backward()
    except Exception:  # whatever the code of a network raises where it finds no values
        return None
    return counter.get_total_flops() / images or None


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of large matrix products, the best of a few.

    It takes a tenth of a second, and waits for the device.
    """
    side = _SIDE.get(device.type, _SIDE["cpu"])
    generator = torch.Generator(device).manual_seed(0)
    one, other = (torch.rand(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    multiply = torch._int_mm if dtype == torch.int8 else torch.matmul
    seconds = min(time_on(device, lambda: multiply(one, other)) for _ in range(_REPEATS))
    return 2 * side**3 / seconds
