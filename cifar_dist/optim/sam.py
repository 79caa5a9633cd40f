"""Sharpness-aware minimisation: apply the gradient at a point uphill of the weights to the weights themselves.

Foret, Kleiner, Mobahi, Neyshabur: *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR 2021,
arXiv:2010.01412. With the gradient g of a batch at the weights w, the optimizer applies::

    the gradient of the same batch at  w + rho * g / ||g||
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def ascended(model: nn.Module, rho: float, buffers: Callable[[], Iterable[Tensor]]) -> Iterator[None]:
    """Move the weights uphill by ``rho`` inside the context, with gradients cleared for a second pass.

    On exit, weights and buffers are restored bit for bit; the gradients are those of the second pass. The
    norm is over all parameters, so the gradients must be those of the global batch, equal on all processes: the
    paper's m-sharpness with the batch as m, and the same weights on any number of processes. A loss scale cancels.

    Args:
        model: its parameters hold the unclipped gradient of the first pass.
        rho: L2 radius, above 0; 0.05 in the paper's CIFAR runs.
        buffers: those to restore, of which no pass changes the shape.
    """
    weights = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
    # The second pass sees the same data: batch statistics updated twice would decay twice as fast.
    with torch.no_grad():
        kept = [tensor.clone() for tensor in (*weights, *buffers())]
        scale = rho / torch.nn.utils.get_total_norm(gradients).clamp(min=1e-12)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.addcmul_(gradient, scale.to(weight.dtype))
            weight.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            # Asked for again: a network may have put other tensors in their place.
            for tensor, before in zip((*weights, *buffers()), kept, strict=True):
                tensor.copy_(before)
