"""The settings in which runs differ."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from cifar_dist import recipe
from cifar_dist.config import Config

_KEPT_HOW = (
    "run.dir",
    "run.name",
    "run.fresh",
    "run.processes",
    "checkpoint.",
    "tracking.",
)  # none is better for these


def differences(configs: Sequence[Config]) -> dict[str, list[str]]:
    """Each setting in which some differ, with its value in all of them as TOML writes it.

    An option that a model does not have is empty. How a run is kept and watched is left out.
    """
    trees = [recipe.settings_of(config) for config in configs]
    keys = dict.fromkeys(key for tree in trees for key in tree if not key.startswith(_KEPT_HOW))
    differ = [key for key in keys if any(tree.get(key) != trees[0].get(key) for tree in trees)]
    return {key: [_value(tree.get(key)) for tree in trees] for key in differ}


def short_key(key: str, keys: Collection[str]) -> str:
    """The last part of a key where that is not ambiguous; a name is one of something."""
    last = key.rpartition(".")[2]
    return last if last != "name" and [other.rpartition(".")[2] for other in keys].count(last) == 1 else key


def _value(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
