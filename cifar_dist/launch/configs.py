"""Find configs of ``accelerate launch`` by name, in ``launch/`` of the repository and of the working folder."""

from __future__ import annotations

from pathlib import Path

from cifar_dist.config.section import expand_existing
from cifar_dist.errors import UserError
from cifar_dist.files.checkout import repository


def find_config(config: str) -> Path:
    """Return the file of a config.

    Args:
        config: a name in ``launch/``, such as ``ddp``, or a path: what ends in ``.yaml``, ``.yml`` or ``.json``, or has
            a slash.

    Raises:
        UserError: it does not exist; the message names those that do and the folders searched.
    """
    if "/" in config or config.endswith((".yaml", ".yml", ".json")):
        if (given := expand_existing(config)).is_file():
            return given
        raise UserError(f"launch config {config} does not exist; {_known()}")
    for folder in _folders():
        if (path := folder / f"{config}.yaml").is_file():
            return path
    raise UserError(f"launch/{config}.yaml does not exist; {_known()}")


def config_names() -> list[str]:
    """List the names that :func:`find_config` accepts."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def _known() -> str:
    searched = " and ".join(map(str, _folders()))
    if names := config_names():
        return f"configs: {' '.join(names)} (in {searched})"
    return f"searched {searched}; run in a checkout of the repository, or give the path of an Accelerate config"


def _folders() -> list[Path]:
    return list(dict.fromkeys([repository() / "launch", Path("launch").resolve()]))
