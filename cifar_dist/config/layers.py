"""One tree of settings laid over another: a recipe over its base, the command line over a recipe."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

from cifar_dist.config.choice import Choice, field_names, pick

Tree = dict[str, Any]


def laid_over(base: Tree, tree: Tree, owner: type) -> Tree:
    """Both trees of sections; where they meet, the second. ``owner`` is the dataclass whose fields the sections are."""
    return _merged(without_lost(base, tree, owner), tree)


def without_lost(base: Tree, tree: Tree, owner: type) -> Tree:
    """``base`` without what means nothing under ``tree``.

    A layer that picks another variant of a section than the one below does not get the settings that only that
    variant has, and another model does not get the options of the first.
    """
    hints = get_type_hints(owner)
    for field in fields(owner):
        below, above = base.get(field.name), tree.get(field.name)
        if not (isinstance(below, dict) and isinstance(above, dict)):
            continue
        if issubclass(hints[field.name], Choice):
            base = {**base, field.name: _kept(hints[field.name], below, above)}
        elif "options" in below and above.get("name", below.get("name")) != below.get("name"):
            base = {**base, field.name: {key: value for key, value in below.items() if key != "options"}}
    return base


def _kept(root: type[Choice], below: Tree, above: Tree) -> Tree:
    """What is left of ``below``: all but what the variant that ``above`` picks has lost."""
    try:
        before, after = (field_names(pick(root, settings)) for settings in (below, {**below, **above}))
    except ValueError:
        return below  # a variant that does not exist is reported when the whole is checked
    return {key: value for key, value in below.items() if key in after or key not in before}


def _merged(base: Tree, tree: Tree) -> Tree:
    merged = dict(base)
    for key, value in tree.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
