"""How fast a device computes: the arithmetic of a network, and what large matrix products reach."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn

_SIDE = {"cpu": 512, "cuda": 4096}
_REPEATS = 5


def copy_shapes(module: nn.Module) -> nn.Module | None:
    """Copy a network to the ``meta`` device, without its values; None for a network that cannot be copied.

    Before an engine wraps it: a copy of its hooks would exchange weights with the other ranks.
    """
    try:
        empty: dict[int, Tensor] = {id(value): torch.empty_like(value, device="meta") for value in module.buffers()}
        for value in module.parameters():
            empty[id(value)] = nn.Parameter(torch.empty_like(value, device="meta"), value.requires_grad)
        return copy.deepcopy(module, empty)
    except Exception:  # whatever the code of a network raises
        return None


def operations_per_image(module: nn.Module | None, shape: tuple[int, int, int]) -> float | None:
    """Count floating-point operations of one image's forward and backward pass; None for a network that hides them.

    A multiply-add counts as two. Only shapes are computed.

    Args:
        module: as :func:`copy_shapes` returns it.
        shape: (height, width, channels) of an image.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    if module is None:
        return None
    images, (height, width, channels) = 2, shape  # batch normalisation requires two
    try:
        with FlopCounterMode(display=False) as counter, torch.random.fork_rng(devices=[]):
            module.train()(torch.empty(images, channels, height, width, device="meta")).sum().backward()
    except Exception:  # whatever the code of a network raises where it finds no values
        return None
    return counter.get_total_flops() / images or None


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of large matrix products, the best of a few.

    It takes a few hundredths of a second, and waits for the device.
    """
    side = _SIDE.get(device.type, _SIDE["cpu"])
    generator = torch.Generator(device).manual_seed(0)
    one, other = (torch.rand(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    seconds = min(_time_product(one, other) for _ in range(_REPEATS))
    return 2 * side**3 / seconds


def _time_product(one: Tensor, other: Tensor) -> float:
    if one.is_cuda:
        torch.cuda.synchronize(one.device)
    begin = time.perf_counter()
    one @ other
    if one.is_cuda:
        torch.cuda.synchronize(one.device)
    return time.perf_counter() - begin
