"""A config.toml of version 1, which had every key of every variant, is read as it was meant."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pytest
import tomli_w

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.config.choice import is_root, keys_of
from cifar_dist.config.optim import MuonSGDConfig
from cifar_dist.config.saved import read_config
from cifar_dist.config.tree import to_toml, to_tree


def version_1(settings: Config) -> dict[str, dict[str, object]]:
    """Build a config as version 1 wrote it: every key of every variant."""
    tree = to_tree(settings)
    for section in fields(Config):
        kind = type(getattr(Config(), section.name)).__mro__
        root = next((base for base in kind if is_root(base)), None)
        if root is not None:
            variants = [*root.variants.values(), *MuonSGDConfig.variants.values()]
            default = {key: value for variant in variants for key, value in asdict(variant()).items()}
            tree[section.name] = {key: tree[section.name].get(key, default.get(key)) for key in keys_of(root)}
    return tree


@pytest.mark.parametrize("name", [*recipe.shipped()])
def test_a_config_of_version_1_is_read_as_it_was_meant(tmp_path: Path, name: str) -> None:
    now = recipe.load(name)
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(version_1(now)))
    assert len(path.read_text().splitlines()) > len(to_toml(now).splitlines()), "it holds more"
    assert read_config(path) == now
    assert recipe.load(str(path)) == now


def test_a_frozen_run_of_version_1_is_read_without_what_had_no_effect(tmp_path: Path) -> None:
    now = recipe.load("demo", ["--model.freeze", "--average.name", "ema"])
    tree = version_1(now)
    tree["optim"]["backbone_lr"], tree["average"]["recalibrate"] = 0.1, 100
    (tmp_path / "config.toml").write_text(tomli_w.dumps(tree))
    assert read_config(tmp_path / "config.toml") == now
