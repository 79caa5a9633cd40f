"""A network cut into stages, for transfer learning: the head learns first, the stages before it later or never.

Howard, Ruder: *Universal Language Model Fine-tuning for Text Classification*, arXiv:1801.06146: gradual unfreezing and
discriminative fine-tuning, in which each stage has a learning rate of its own. What learns is a function of the epoch
alone, so a run may resume anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from cifar_dist.config import ModelConfig

_FEWEST = 4  # stages before the head, where the network can be cut into as many
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CHAINS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Stage:
    """A part of a network that learns, or does not, as one.

    Attributes:
        modules: in the network's order; together they hold the layers that have a mode (batch norm, dropout).
        parameters: in the network's order, whether they learn or not.
    """

    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]


def last_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """The layer that gives the logits, and its name: the linear layer (or convolution) that is registered last."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _LAYERS)]
    assert layers, "a network without a linear layer or convolution has no stages"
    return layers[-1]


def stages(model: nn.Module) -> list[Stage]:
    """The stages from the input to the head; every parameter is in exactly one of them.

    The last is the head: the last layer, and what has no tensors directly before it, such as dropout. The backbone is
    cut at the top of its tree of modules, and its part with the most layers is opened, again and again, until it has
    four parts or no more to open: ``layer1`` to ``layer4`` of a ResNet, but the layers of a VGG and the blocks
    of a ViT. A block (a member of a Sequential) stays whole. A norm goes with the layer before it, a parameter that
    belongs to no part (the tokens and positions of a ViT) with the first stage.

    Args:
        model: the bare network, not wrapped.
    """
    cut: list[list[nn.Module]] = []
    waiting: list[nn.Module] = []  # without tensors (pool, dropout): they work on the input of what follows
    for part in _parts(model):
        waiting.append(part)
        if not [*part.parameters(), *part.buffers()]:
            continue
        if not cut or any(parameter.ndim > 1 for parameter in part.parameters()):
            cut.append([])
        cut[-1] += waiting
        waiting = []
    cut[-1] += waiting
    place = {p: index for index, modules in reversed([*enumerate(cut)]) for m in modules for p in m.parameters()}
    parameters: list[list[nn.Parameter]] = [[] for _ in cut]
    for parameter in model.parameters():
        parameters[place.get(parameter, 0)].append(parameter)
    return [Stage(tuple(m), tuple(p)) for m, p in zip(cut, parameters, strict=True)]


def freeze_backbone(model: nn.Module) -> None:
    """Only the parameters of the head ask for a gradient; to be called before the optimizer is made."""
    for stage in stages(model)[:-1]:
        for parameter in stage.parameters:
            parameter.requires_grad_(False)


def set_mode(model: nn.Module, config: ModelConfig, epoch: float) -> int:
    """Training mode for the stages that learn in ``epoch``, evaluation mode for those before them.

    In evaluation mode batch statistics stay as they are and dropout is off. To be called at the beginning of each
    epoch and whenever ``model.train()`` was. A function of its arguments alone.

    Args:
        model: the bare network.
        epoch: from 0; a fraction is the part of the epoch that is done.

    Returns:
        how many stages learn, counted from the head: 1 with ``config.freeze``, 1 + floor(epoch / unfreeze) with
        ``config.unfreeze``, else all. The optimizer's groups are told by :func:`cifar_dist.optim.optimizers.thaw`.
    """
    cut = stages(model)
    learning = len(cut)
    if config.freeze:
        learning = 1
    elif config.unfreeze:
        # 0.6 / 0.2 is 2.9999999999999996; no step is a millionth of a stage away from its epoch.
        learning = min(1 + math.floor(epoch / config.unfreeze + 1e-6), len(cut))
    model.train()
    for stage in cut[: len(cut) - learning]:
        for module in stage.modules:
            module.eval()
    return learning


def _parts(model: nn.Module) -> list[nn.Module]:
    """The modules that stages are made of, in the model's order; the last layer is one of them."""
    head = last_layer(model)[1]
    parts, blocks = [model], set[nn.Module]()
    while True:
        backbone = [part for part in parts if _layers(part) and head not in part.modules()]
        divisible = [part for part in backbone if _layers(part) > 1 and part not in blocks]
        if divisible and len(backbone) < _FEWEST:
            opened = max(divisible, key=_layers)
        elif head not in parts:
            opened = next(part for part in parts if head in part.modules())
        else:
            return parts
        children = list(opened.children())
        if isinstance(opened, _CHAINS):
            blocks.update(child for child in children if not isinstance(child, _CHAINS))
        place = parts.index(opened)
        parts[place : place + 1] = children


def _layers(module: nn.Module) -> int:
    return sum(isinstance(inner, _LAYERS) for inner in module.modules())
