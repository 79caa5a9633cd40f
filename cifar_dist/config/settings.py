"""Every setting of a config by its dotted key."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from cifar_dist.config.named_items import settings_of_items
from cifar_dist.config.tree import Tree, flatten, to_tree

if TYPE_CHECKING:
    from cifar_dist.config import Config


def settings_of(config: Config) -> Tree:
    """Return every setting by its dotted key, including those of named list items: ``augment.crop.pad``."""
    found: Tree = {}
    tree = to_tree(config)
    for section in fields(config):
        table, listed = tree[section.name], getattr(config, section.name).named_items
        if listed:
            items = settings_of_items(table.pop(listed), listed)
            found |= {f"{section.name}.{key}": value for key, value in items}
        found |= flatten(table, f"{section.name}.")
    return found
