"""Build the optimizer of a config, with parameter groups by weight decay and, if stages differ, by stage."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cifar_dist.config import OptimConfig
from cifar_dist.config.optim import MuonConfig, StagedOptimConfig
from cifar_dist.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def build_optimizer(
    config: OptimConfig,
    model: nn.Module,
    stages: Sequence[Sequence[nn.Parameter]] = (),
    *,
    gradual: bool = False,
) -> Optimizer:
    """Build the optimizer over all trainable parameters, in the model's order, at learning rate ``config.lr``.

    Call it before the model is wrapped or sharded, because one-dimensional parameters (norm layers and biases) are
    identified by their shape. The trainer sets the learning rate of
    :func:`~cifar_dist.optim.learning_rate.learning_rate` in all groups, times a group's ``lr_scale`` if it has one.

    Args:
        stages: the parameters of each stage, the head last. With ``backbone_lr``, ``layer_decay`` or ``gradual``,
            each stage has its own groups: ``stage`` is its distance from the head, and ``lr_scale`` is 1 for the head
            and backbone_lr * layer_decay ** (distance - 1) for the others (Howard, Ruder, arXiv:1801.06146).
        gradual: whether :func:`thaw` will be called.

    Raises:
        UserError: muon with a model that has no trainable hidden layers, or with gradual unfreezing; a plug-in builds
            something else, or groups that the trainer could not set.
    """
    staged = isinstance(config, StagedOptimConfig) and not config.backbone_lr == config.layer_decay == 1
    groups = _groups_of_stages(config, stages) if gradual or staged else _groups(config, model.parameters())
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    return _build_checked(functools.partial(_create, config, model), groups, config, model)


def _create(config: OptimConfig, model: nn.Module, groups: list[dict[str, Any]]) -> Optimizer:
    """Create the optimizer over ``groups``; one that ``config.build`` cannot import is created here."""
    if isinstance(config, MuonConfig):
        return _create_muon(config, model, groups)
    return config.build(groups)


def _build_checked(
    build: Callable[[list[dict[str, Any]]], object],
    groups: list[dict[str, Any]],
    config: OptimConfig,
    model: nn.Module,
) -> Optimizer:
    """Build an optimizer over ``groups``, and refuse one that lost a parameter or its stage, or has a rate of its own.

    It may be a plug-in's.
    """
    from torch.optim import Optimizer

    stages = _stages(groups)  # now: build may change its argument
    built = build(groups)
    if not isinstance(built, Optimizer):
        raise UserError(f"optim.name {config.name}: build returned {type(built).__name__}, not a torch.optim.Optimizer")
    if wrong := _wrong_step(built) or _wrong_groups(built, config.lr, stages, model):
        raise UserError(f"optim.name {config.name}: {wrong}")
    for group in built.param_groups:
        if "stage" in group:
            group["stage_lr_scale"] = group["lr_scale"]  # which a plug-in may have multiplied
    return built


def _wrong_step(built: Optimizer) -> str:
    """Say that ``step`` cannot be called as the engines call it; empty if it can."""
    takes = inspect.signature(built.step)
    try:
        takes.bind()  # by DeepSpeed
        takes.bind(None)  # by Accelerate
    except TypeError:
        called = f"{type(built).__name__}.step{takes} is called without a closure"
        return f"{called}; use an optimizer with step(closure=None)"
    return ""


def _wrong_groups(built: Optimizer, lr: float, stages: dict[nn.Parameter, int | None], model: nn.Module) -> str:
    """Say what is wrong with the parameter groups; empty if nothing is.

    Args:
        built: the optimizer.
        lr: ``optim.lr``.
        stages: of each parameter that was passed to ``build``.
        model: for the names of its parameters.
    """
    built_stages = _stages(built.param_groups)
    if other := len(built_stages.keys() - stages.keys()):
        return f"build returned an optimizer of {other} tensors that are not in groups"
    for name, parameter in model.named_parameters():
        if parameter not in stages:
            continue
        if parameter not in built_stages:
            return f"build left out {name}, which would never train; pass all groups to the optimizer"
        if built_stages[parameter] != stages[parameter]:
            return f'build lost the stage of {name}; keep the other keys of its group: {{**group, "params": [...]}}'
    for group in built.param_groups:
        if group.get("lr") is None:  # each step sets it
            continue
        found = float(group["lr"])
        if not any(math.isclose(found, wanted, rel_tol=1e-6) for wanted in (lr, lr * group.get("lr_scale", 1.0))):
            return (
                f"build gave a group the learning rate {found:g}, and each step sets that of the schedule, at most "
                f'{lr:g}; pass lr=self.lr, and to a group with a rate of its own "lr_scale": {found / lr:g}'
            )
    return ""


def _stages(groups: Iterable[dict[str, Any]]) -> dict[nn.Parameter, int | None]:
    """Return the stage of each parameter; None without what :func:`thaw` needs of its group."""
    return {p: group.get("stage") if "lr_scale" in group else None for group in groups for p in group["params"]}


def _stage_scale(config: OptimConfig, distance: int) -> float:
    """Return the learning rate of a stage ``distance`` before the head, as a multiple of the head's."""
    if distance == 0 or not isinstance(config, StagedOptimConfig):
        return 1.0
    return float(config.backbone_lr * config.layer_decay ** (distance - 1))


def _create_muon(config: MuonConfig, model: nn.Module, groups: list[dict[str, Any]]) -> Optimizer:
    """Create Muon over the hidden layers, with ``config.rest`` over the other parameters at its own rate."""
    from cifar_dist.optim.muon import Muon, hidden_weights

    if any("stage" in group for group in groups):
        raise UserError("model.unfreeze does not work with optim.name muon; use --optim.name sgd or adamw")
    hidden = hidden_weights(model)
    if not hidden:
        raise UserError("optim.name muon needs trainable hidden layers and this model has none; use --optim.name sgd")
    matrices = {id(weight) for weight in hidden}
    others = [{**group, "params": [p for p in group["params"] if id(p) not in matrices]} for group in groups]
    rest = _build_checked(config.build, [group for group in others if group["params"]], config, model)
    for group in rest.param_groups:
        group["lr_scale"] = config.rest_lr
    return Muon(
        hidden,
        rest,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=0.0 if config.normalize else config.weight_decay,
        normalize=config.normalize,
        iterations=config.iterations,
    )


def thaw(groups: Iterable[dict[str, Any]], learning: int) -> None:
    """Set ``lr_scale`` of every stage's groups: 0 for frozen stages, so that their weights do not change by a bit.

    Frozen parameters still receive gradients, because DDP and DeepSpeed require one set of parameters for the entire
    run, and their moments follow the gradients: a stage thaws with the momentum of the latest steps. Idempotent;
    groups without a stage do not change.

    Args:
        groups: an optimizer's ``param_groups``.
        learning: stages that learn, counted from the head, as :func:`cifar_dist.models.transfer.set_mode` returns it.
    """
    for group in groups:
        if "stage" in group:
            group["lr_scale"] = group["stage_lr_scale"] if group["stage"] < learning else 0.0


def _groups_of_stages(config: OptimConfig, stages: Sequence[Sequence[nn.Parameter]]) -> list[dict[str, Any]]:
    """Group the parameters of each stage, the head last, with what :func:`thaw` needs."""
    groups = []
    for distance, parameters in reversed([*enumerate(reversed(stages))]):
        place = {"stage": distance, "lr_scale": _stage_scale(config, distance)}
        groups += [{**group, **place} for group in _groups(config, parameters)]
    return groups


def _groups(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Group parameters by whether they decay; omit empty groups."""
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
