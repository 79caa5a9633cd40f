"""Merge trees of settings in layers: a recipe over its base, the command line over a recipe."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

from cifar_dist.config.choice import Choice, default_values, pick
from cifar_dist.config.plugins import is_same
from cifar_dist.config.tree import Tree


def laid_over(base: Tree, tree: Tree, owner: type) -> Tree:
    """Merge two trees of sections; ``tree`` wins. ``owner`` is the dataclass whose fields the sections are."""
    return _merged(without_lost(base, tree, owner), tree)


def without_lost(base: Tree, tree: Tree, owner: type) -> Tree:
    """Return ``base`` without the settings that have no meaning under ``tree``.

    A layer that picks another variant of a section does not inherit the settings that only the variant below has, nor
    those with another default there: the decay of an EMA undoes what lookahead learns. Another model does not inherit
    the options of the model below.
    """
    hints = get_type_hints(owner)
    for field in fields(owner):
        below, above = base.get(field.name), tree.get(field.name)
        if not (isinstance(below, dict) and isinstance(above, dict)):
            continue
        if issubclass(hints[field.name], Choice):
            base = {**base, field.name: _kept(hints[field.name], below, above)}
        elif "options" in below and "name" in above:
            name = below.get("name", hints[field.name].name)
            if not is_same(str(name), str(above["name"])):
                base = {**base, field.name: {key: value for key, value in below.items() if key != "options"}}
    return base


def _kept(root: type[Choice], below: Tree, above: Tree) -> Tree:
    """Return ``below`` without the keys that the variant picked by ``above`` lacks, or has with another default."""
    settings = {**below, **above}
    try:
        before, after = (pick(root, tree) for tree in (below, settings))
    except ValueError:
        return below  # building the config reports an unknown variant
    if before is after:
        return below
    defaults = default_values(after)
    lost = {key for key, default in default_values(before).items() if key not in defaults or defaults[key] != default}
    lost |= {key for key, other in after.needs.items() if other not in settings}
    return {key: value for key, value in below.items() if key not in lost}


def _merged(base: Tree, tree: Tree) -> Tree:
    merged = dict(base)
    for key, value in tree.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
