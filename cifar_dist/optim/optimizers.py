"""Torch's optimizers with at most two parameter groups: what decays and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cifar_dist.config import OptimConfig

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """The optimizer over all parameters that learn, in the model's order, at learning rate ``config.lr``.

    Build it before the model is wrapped or sharded: one-dimensional parameters (norm layers and biases) are told by
    their shape. All groups have one learning rate, which :func:`~cifar_dist.optim.schedules.learning_rate` sets.
    """
    import torch

    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if config.decay_norms or parameter.ndim > 1 else exempt).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (exempt, 0.0))
        if parameters
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps)
