"""Find the settings in which runs differ."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cifar_dist.config import Config
from cifar_dist.config.changes import may_change
from cifar_dist.config.settings import settings_of
from cifar_dist.config.toml_text import as_typed

_SHOWN = ("data.path", "train.", "eval.")
"""Settings that are compared though a resume may change them: of the data, the speed and the evaluation."""


def differences(configs: Sequence[Config]) -> dict[str, list[str]]:
    """Return each setting that differs, with its value in every config as one types it.

    An option that a model does not have is empty. Settings that say where and how a run is kept are omitted.
    """
    trees = [settings_of(config) for config in configs]
    keys = dict.fromkeys(key for tree in trees for key in tree if key.startswith(_SHOWN) or not may_change(key))
    differ = [key for key in keys if any(tree.get(key) != trees[0].get(key) for tree in trees)]
    return {key: ["" if tree.get(key) is None else as_typed(tree[key]) for tree in trees] for key in differ}


def short_key(key: str, keys: Collection[str]) -> str:
    """Return the last part of a key if that is unambiguous; ``name`` always keeps its section."""
    last = key.rpartition(".")[2]
    return last if last != "name" and [other.rpartition(".")[2] for other in keys].count(last) == 1 else key
