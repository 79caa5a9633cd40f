"""The settings that a run folder has in its ``config.toml``."""

from __future__ import annotations

from pathlib import Path

from cifar_dist.config import Config
from cifar_dist.config.build import build_config
from cifar_dist.config.keys import check_keys
from cifar_dist.config.toml_text import parse_toml
from cifar_dist.config.version1 import upgraded
from cifar_dist.errors import UserError

CONFIG_NAME = "config.toml"


def read_config(path: Path) -> Config:
    """Read the config of a run folder without running the plug-ins that it names, see :func:`build_config`.

    Raises:
        UserError: the file is missing or invalid.
    """
    try:
        tree = parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a run folder: it has no {path.name}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from None
    tree = upgraded(tree, Config)
    check_keys(tree, where=str(path))
    return build_config(tree, where=str(path), import_plugins=False)
