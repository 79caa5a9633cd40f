"""Constants of the operations, kept on each device: copying one in every batch would wait for the device."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

Numbers = float | tuple["Numbers", ...]


@functools.lru_cache(maxsize=256)
def constant(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a number, or nested tuples of numbers, as a tensor. It is shared: do not change it."""
    return torch.tensor(values, dtype=dtype).to(device)


def divide(numbers: Tensor, divisor: float) -> Tensor:
    """Divide floats by a number with one rounding, on every device.

    Where the divisor is a number of Python, CUDA multiplies by its reciprocal, which rounds twice.
    """
    return numbers / constant(divisor, numbers.dtype, numbers.device)
