"""How the tensors of two checkpoints differ, one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cifar_dist.checkpoint.contents import Tensors
from cifar_dist.checkpoint.folder import files_of


@dataclass(frozen=True)
class Difference:
    """A tensor in one or both of two checkpoints.

    Attributes:
        name: ``weights/NAME``, ``averaged/NAME``, ``averaged_statistics/NAME`` or ``optimizer/KEY/NAME``.
        first, second: its dtype and shape in each; empty where it does not exist.
        largest: the largest absolute difference of two elements, which may be 0 where bits differ: -0 and 0, or two
            nan. Infinite if types or shapes differ, or if there is a nan in one of them only.
        is_equal: whether all bits are equal.
    """

    name: str
    first: str
    second: str
    largest: float
    is_equal: bool


def compare(first: Tensors, second: Tensors) -> list[Difference]:
    """Compare all tensors of two checkpoints, the largest difference first."""
    ours, theirs = _by_name(first), _by_name(second)
    found = [_difference(name, ours.get(name), theirs.get(name)) for name in {**ours, **theirs}]
    return sorted(found, key=lambda difference: (-difference.largest, difference.name))


def _by_name(tensors: Tensors) -> dict[str, Tensor]:
    files = files_of(tensors).items()
    return {f"{Path(file).stem}/{name}": value for file, content in files for name, value in content.items()}


def _difference(name: str, first: Tensor | None, second: Tensor | None) -> Difference:
    if first is None or second is None or first.shape != second.shape or first.dtype != second.dtype:
        return Difference(name, _kind(first), _kind(second), math.inf, is_equal=False)
    is_equal = torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))
    largest = 0.0 if is_equal else _largest(first, second)
    return Difference(name, _kind(first), _kind(second), largest, is_equal)


def _kind(tensor: Tensor | None) -> str:
    return "" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _largest(first: Tensor, second: Tensor) -> float:
    distance = (first.double() - second.double()).abs()
    same = first.isnan() & second.isnan() | (first == second)  # an infinity minus itself is nan
    return float(distance.masked_fill(same, 0).nan_to_num(nan=math.inf, posinf=math.inf).max())
