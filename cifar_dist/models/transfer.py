"""A network divided into stages for transfer learning: the head trains first, the stages before it later or never.

Gradual unfreezing, and discriminative fine-tuning with a learning rate per stage, follow Howard, Ruder: *Universal
Language Model Fine-tuning for Text Classification*, arXiv:1801.06146. Which stages train depends on the epoch alone,
so a run can resume at any step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from cifar_dist.config import ModelConfig

_MIN_BACKBONE_STAGES = 4  # stages before the head, if the network can be divided that far
_WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Stage:
    """A part of a network that is trained or frozen as a unit.

    Attributes:
        modules: in network order; they include every layer that has a mode (batch norm, dropout).
        parameters: in network order, trainable or not.
    """

    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]


def last_layer(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Return name and module of the layer that computes the logits: the linear layer or convolution registered last.

    None for a network that has layers of its own only.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _WEIGHT_LAYERS)]
    return layers[-1] if layers else None


def stages(model: nn.Module) -> list[Stage]:
    """Divide a network into stages, from the input to the head; every parameter is in exactly one of them.

    The last stage is the head: the last layer and the tensor-less modules directly before it, such as dropout. The
    backbone is divided at the top of its module tree; then the part with the most layers is replaced by its children
    until there are four parts or none can be divided. That gives ``layer1`` to ``layer4`` of a ResNet, but the layers
    of a VGG and the blocks of a ViT. A block (a member of a Sequential) is never divided. A norm belongs to the stage
    of the layer before it, and a parameter outside all parts (tokens and positions of a ViT) to the first stage. A
    network without a linear layer or convolution is one stage.

    Args:
        model: the unwrapped network.
    """
    if (last := last_layer(model)) is None:
        return [Stage((model,), tuple(model.parameters()))]
    groups: list[list[nn.Module]] = []
    pending: list[nn.Module] = []  # modules without tensors (pool, dropout) belong to the stage that follows
    for part in _divide(model, last[1]):
        pending.append(part)
        if not [*part.parameters(), *part.buffers()]:
            continue
        if not groups or any(parameter.ndim > 1 for parameter in part.parameters()):
            groups.append([])
        groups[-1] += pending
        pending = []
    groups[-1] += pending
    stage_of = {p: index for index, modules in reversed([*enumerate(groups)]) for m in modules for p in m.parameters()}
    parameters: list[list[nn.Parameter]] = [[] for _ in groups]
    for parameter in model.parameters():
        parameters[stage_of.get(parameter, 0)].append(parameter)
    return [Stage(tuple(m), tuple(p)) for m, p in zip(groups, parameters, strict=True)]


def freeze_backbone(model: nn.Module) -> None:
    """Let only the head require gradients. Call it before the optimizer is created."""
    for stage in stages(model)[:-1]:
        for parameter in stage.parameters:
            parameter.requires_grad_(False)


def set_mode(model: nn.Module, modules: Sequence[Sequence[nn.Module]], config: ModelConfig, epoch: int) -> int:
    """Put the stages that train in ``epoch`` into training mode, and those before them into evaluation mode.

    Evaluation mode freezes batch statistics and disables dropout. Call it at the beginning of each epoch and after
    every ``model.train()``. The result depends on the arguments alone.

    Args:
        model: the unwrapped network.
        modules: of each of its :func:`stages`, which are found before an engine shards the parameters.
        epoch: from 0.

    Returns:
        The number of stages that train, counted from the head: :meth:`ModelConfig.learning_stages`, which
        :func:`cifar_dist.optim.optimizers.thaw` applies to the optimizer.
    """
    training = config.learning_stages(len(modules), epoch)
    model.train()
    for frozen in modules[: len(modules) - training]:
        for module in frozen:
            module.eval()
    return training


def _divide(model: nn.Module, head: nn.Module) -> list[nn.Module]:
    """Return the modules that stages are composed of, in model order; the head is one of them."""
    parts, indivisible = [model], set[nn.Module]()
    while True:
        backbone = [part for part in parts if _count_layers(part) and head not in part.modules()]
        divisible = [part for part in backbone if _count_layers(part) > 1 and part not in indivisible]
        if divisible and len(backbone) < _MIN_BACKBONE_STAGES:
            opened = max(divisible, key=_count_layers)
        elif head not in parts:
            opened = next(part for part in parts if head in part.modules())
        else:
            return parts
        children = list(opened.children())
        if isinstance(opened, _CONTAINERS):
            indivisible.update(child for child in children if not isinstance(child, _CONTAINERS))
        position = parts.index(opened)
        parts[position : position + 1] = children


def _count_layers(module: nn.Module) -> int:
    return sum(isinstance(inner, _WEIGHT_LAYERS) for inner in module.modules())
