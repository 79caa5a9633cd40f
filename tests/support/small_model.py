"""A network with one layer of each kind (convolution, batch norm, dropout, linear), and a few steps of training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def small_model(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(6 * 16, 5),
    )


def images(step: int, count: int = 8) -> Tensor:
    """float32 [count, 3, 8, 8], the same for the same step."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(step)) + 0.5


def loss_of(model: nn.Module, step: int) -> Tensor:
    return F.cross_entropy(model(images(step)), torch.arange(8) % 5)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
