"""The settings that a run folder has in its ``config.toml``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cifar_dist.config import Config
from cifar_dist.config.build import build_config
from cifar_dist.config.keys import check_keys
from cifar_dist.config.toml_text import TomlError, read_toml
from cifar_dist.config.tree import Tree
from cifar_dist.config.version_1 import is_version_1, upgraded
from cifar_dist.errors import UserError, quoted

CONFIG_NAME = "config.toml"
STARTED_NAME = ".started.toml"
"""The ``config.toml`` as the last start of the run wrote it."""

_ALWAYS_WRITTEN = "run data augment model optim schedule average train eval checkpoint tracking".split()
"""Sections in every ``config.toml`` but those of version 1: one that a later version adds is not among them."""


def read_config(path: Path, *, import_plugins: bool = False, without: Collection[str] = ()) -> Config:
    """Read the config of a run folder.

    Args:
        import_plugins: whether the code that it names may run; without it the config cannot compute, see
            :func:`build_config`.
        without: sections in whose place the defaults are read.

    Raises:
        UserError: the file is missing, incomplete or invalid.
    """
    try:
        given = read_toml(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a run folder: it has no {path.name}{way_to_repair(path)}") from None
    except TomlError as error:
        raise UserError(f"{error}{way_to_repair(path)}") from None
    tree = upgraded(given, Config)
    try:
        check_keys(tree, where=str(path))
        wanted = {name: section for name, section in tree.items() if name not in without}
        config = build_config(wanted, where=str(path), import_plugins=import_plugins)
    except UserError as error:
        if not _missing_section(given):
            raise
        raise UserError(f"{error}{way_to_repair(path)}") from None
    refuse_incomplete(given, path)
    return config


def refuse_incomplete(tree: Tree, path: Path) -> None:
    """Refuse a file of a run that has lost sections: the defaults would be read in their place.

    Raises:
        UserError: with the command that repairs it, if there is one.
    """
    if missing := _missing_section(tree):
        raise UserError(f"{path} is incomplete: it has no section [{missing}]{way_to_repair(path)}")


def way_to_repair(path: Path) -> str:
    """Return the command that writes a file of a run's settings again, after ";"; empty if its other is damaged too."""
    other = path.with_name(STARTED_NAME if path.name == CONFIG_NAME else CONFIG_NAME)
    try:
        missing = _missing_section(read_toml(other))
    except (UserError, OSError):
        return ""
    return "" if missing else f"; restore it: cp {quoted(other)} {quoted(path)}"


def _missing_section(tree: Tree) -> str:
    """Return the first section that a file of a run's settings has lost; empty for none."""
    return "" if is_version_1(tree) else next((name for name in _ALWAYS_WRITTEN if name not in tree), "")
