"""Torch's optimizers with at most two parameter groups: what decays and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cifar_dist.config import OptimConfig
from cifar_dist.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """The optimizer over all parameters that learn, in the model's order, at learning rate ``config.lr``.

    Build it before the model is wrapped or sharded: one-dimensional parameters (norm layers and biases) are told by
    their shape. The learning rate of :func:`~cifar_dist.optim.schedules.learning_rate` is set in all groups, times
    the group's ``lr_scale`` where it has one.

    Raises:
        UserError: muon for a model without hidden layers.
    """
    import torch

    hidden: list[Tensor] = []
    if config.name == "muon":
        from cifar_dist.optim.muon import Muon, hidden_weights

        hidden = hidden_weights(model)
        if not hidden:
            raise UserError("optim.name muon is for hidden layers and this model has none; use --optim.name sgd")
    matrices = {id(weight) for weight in hidden}
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in matrices:
            (decayed if config.decay_norms or parameter.ndim > 1 else exempt).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (exempt, 0.0))
        if parameters
    ]
    name, momentum = (config.rest, config.rest_momentum) if hidden else (config.name, config.momentum)
    optimizer: Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=config.nesterov)
    else:
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        optimizer = kind(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    if not hidden:
        return optimizer
    for group in optimizer.param_groups:
        group["lr_scale"] = config.rest_lr
    return Muon(
        hidden,
        optimizer,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=0.0 if config.normalize else config.weight_decay,
        normalize=config.normalize,
        iterations=config.iterations,
    )
