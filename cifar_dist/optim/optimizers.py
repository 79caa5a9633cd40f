"""Torch's optimizers: parameter groups by what decays and what does not, and by stage where stages differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cifar_dist.config import OptimConfig
from cifar_dist.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


def build_optimizer(
    config: OptimConfig,
    model: nn.Module,
    stages: Sequence[Sequence[nn.Parameter]] = (),
    *,
    gradual: bool = False,
) -> Optimizer:
    """The optimizer over all parameters that learn, in the model's order, at learning rate ``config.lr``.

    Build it before the model is wrapped or sharded: one-dimensional parameters (norm layers and biases) are told by
    their shape. The learning rate of :func:`~cifar_dist.optim.schedules.learning_rate` is set in all groups, times
    the group's ``lr_scale`` where it has one.

    Args:
        stages: the parameters of each stage, the head last. With ``backbone_lr``, ``layer_decay`` or ``gradual``,
            each stage has groups of its own: ``stage`` is its distance from the head, and ``stage_lr_scale`` is 1
            for the head and backbone_lr * layer_decay ** (distance - 1) before it (Howard, Ruder, arXiv:1801.06146).
        gradual: whether :func:`thaw` will be used.

    Raises:
        UserError: muon for a model without hidden layers that learn, or with gradual unfreezing.
    """
    import torch

    hidden: list[Tensor] = []
    if config.name == "muon":
        from cifar_dist.optim.muon import Muon, hidden_weights

        if gradual:
            raise UserError("model.unfreeze is not for optim.name muon; use --optim.name sgd or adamw")
        hidden = hidden_weights(model)
        if not hidden:
            raise UserError("optim.name muon is for hidden layers and none learns in this model; use --optim.name sgd")
    if gradual or config.backbone_lr != 1 or config.layer_decay != 1:
        groups = []
        for distance, parameters in reversed([*enumerate(reversed(stages))]):
            scale = config.backbone_lr * config.layer_decay ** (distance - 1) if distance else 1.0
            place = {"stage": distance, "stage_lr_scale": scale, "lr_scale": scale}
            groups += [{**group, **place} for group in _groups(config, parameters)]
        assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    else:
        matrices = {id(weight) for weight in hidden}
        groups = _groups(config, (p for p in model.parameters() if id(p) not in matrices))
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


def thaw(groups: Iterable[dict[str, Any]], learning: int) -> None:
    """Set ``lr_scale`` of every stage's groups: 0 for those that sleep, so that their weights keep their very bits.

    They keep asking for gradients, as DDP and DeepSpeed want one set of parameters for the whole run, and their
    moments follow them: a stage wakes with the momentum of the latest steps. Says the same however often it is
    called; groups without a stage are left alone.

    Args:
        groups: an optimizer's ``param_groups``.
        learning: stages that learn, counted from the head, as :func:`cifar_dist.models.transfer.set_mode` gives it.
    """
    for group in groups:
        if "stage" in group:
            group["lr_scale"] = group["stage_lr_scale"] if group["stage"] < learning else 0.0


def _groups(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """What decays, and what does not; a group that would be empty is left out."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in parameters:
        if parameter.requires_grad:
            (decayed if config.decay_norms or parameter.ndim > 1 else exempt).append(parameter)
    return [
        {"params": members, "weight_decay": decay}
        for members, decay in ((decayed, config.weight_decay), (exempt, 0.0))
        if members
    ]
