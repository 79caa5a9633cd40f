"""Sharpness-aware minimisation: the gradient is taken uphill of the weights, and followed from where they are.

Foret, Kleiner, Mobahi, Neyshabur: *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR 2021,
arXiv:2010.01412. With the gradient g of a batch at the weights w, any optimizer follows::

    the gradient of the same batch at  w + rho * g / ||g||
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def ascended(model: nn.Module, rho: float) -> Iterator[None]:
    """Inside, the weights are at the top of the ball of radius ``rho``, with gradients cleared for a second pass.

    On leaving, weights and batch statistics have the very bits they had; the gradients are those of the second pass.
    The norm is that of all parameters together, so the gradients must be those of the global batch, equal on all
    processes: the paper's m-sharpness with m the batch, and the same weights on any number of processes. A loss
    scale cancels in it.

    Args:
        model: whose parameters hold the gradient of the first pass, unclipped.
        rho: L2 radius, above 0; 0.05 in the paper's CIFAR runs.
    """
    weights = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
    # The second pass sees no new data: batch statistics that moved twice would forget twice as fast.
    changing = [*weights, *model.buffers()]
    with torch.no_grad():
        kept = [tensor.clone() for tensor in changing]
        scale = rho / torch.nn.utils.get_total_norm(gradients).clamp(min=1e-12)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.addcmul_(gradient, scale.to(weight.dtype))
            weight.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(changing, kept, strict=True):
                tensor.copy_(before)
