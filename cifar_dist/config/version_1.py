"""Upgrade the config.toml of version 1 to the current form.

Version 1 wrote the settings of every optimizer, schedule and average, whichever the run had chosen. A current file
cannot contain them all, so the keys identify the version.
"""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

from cifar_dist.config.augment_version_1 import upgraded_augment
from cifar_dist.config.choice import Choice, field_names, pick
from cifar_dist.config.tree import Tree

_OPTIM = {"momentum", "betas", "backbone_lr", "rest_lr", "rest_momentum", "iterations"}


def is_version_1(tree: Tree) -> bool:
    """Whether version 1 wrote a config.toml."""
    optim = tree.get("optim")
    return isinstance(optim, dict) and optim.keys() >= _OPTIM


def upgraded(tree: Tree, owner: type) -> Tree:
    """Upgrade ``tree`` if version 1 wrote it: drop settings that had no effect, and list the transforms.

    Args:
        owner: the dataclass whose fields the sections are.
    """
    if not is_version_1(tree):
        return tree
    hints = get_type_hints(owner)
    sections = [field.name for field in fields(owner) if issubclass(hints[field.name], Choice)]
    chosen = {name: _chosen(hints[name], tree[name]) for name in sections if isinstance(tree.get(name), dict)}
    result = {**tree, **chosen, "augment": upgraded_augment(_table(tree, "augment"))}
    if _table(tree, "model").get("freeze"):
        for section, idle in (("optim", ("backbone_lr", "layer_decay")), ("average", ("recalibrate",))):
            result[section] = {key: value for key, value in _table(result, section).items() if key not in idle}
    return result


def _chosen(root: type[Choice], settings: Tree) -> Tree:
    """Return the settings that the chosen variant has."""
    try:
        known = field_names(pick(root, settings, import_plugins=False))
    except ValueError:
        return settings  # damaged: building the config reports it
    return {key: value for key, value in settings.items() if key in known}


def _table(tree: Tree, section: str) -> Tree:
    table = tree.get(section)
    return table if isinstance(table, dict) else {}
