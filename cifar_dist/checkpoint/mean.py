"""The mean of the weights of several checkpoints of one run (Izmailov et al., 2018, arXiv:1803.05407)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cifar_dist.checkpoint.folder import evaluated_weights
from cifar_dist.checkpoint.tensor_files import read_tensors
from cifar_dist.errors import UserError


def mean_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Average the evaluated weights of verified checkpoints, batch statistics included.

    Sums are float64; the result has the dtypes of the checkpoints. Integers, such as batch counters, are those of the
    last one.

    Raises:
        UserError: they belong to different networks.
        CheckpointError, OSError: one of them cannot be read.
    """
    sums: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    for path in paths:
        before, last = last, read_tensors(evaluated_weights(path))
        if before and _kinds(before) != _kinds(last):
            raise UserError(f"{path} has the weights of another network than {paths[0]}")
        for name, value in last.items():
            if value.is_floating_point():
                sums[name] = sums[name] + value.double() if name in sums else value.double()
    return last | {name: (total / len(paths)).to(last[name].dtype) for name, total in sums.items()}


def _kinds(weights: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in weights.items()}
