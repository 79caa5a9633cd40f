"""Rename a run: its folder, and the name in its config."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cifar_dist.config import Config, RunConfig
from cifar_dist.config.saved import read_config
from cifar_dist.config.tree import to_toml
from cifar_dist.errors import UserError
from cifar_dist.files import write_atomic
from cifar_dist.run_folder import RunFolder


def rename(run: Path, name: str) -> Path:
    """Rename a run within its parent folder and return the new folder.

    Evaluations keep the folder names that they got under the old name, because files refer to them.

    Raises:
        UserError: the name is invalid or taken, or the run is training or cannot be written.
    """
    try:
        RunConfig(name=name)
    except ValueError as error:
        raise UserError(f"{error}; use another name") from None
    if not name:
        raise UserError("the new name is empty; give one")
    if run.is_symlink():
        raise UserError(f"{run} is a link; rename the run that it leads to: {run.resolve()}")
    folder, target = RunFolder(run), run.resolve().with_name(name)
    if target.exists():
        raise UserError(f"{target} exists; use another name")
    configs = [path for path in (folder.config, folder.started_config) if path.is_file()]
    renamed = {path.name: _renamed(read_config(path), name) for path in configs}
    try:
        folder.lock()
        run.resolve().rename(target)
        for file, config in renamed.items():
            write_atomic(target / file, to_toml(config))
    except OSError as error:
        raise UserError(f"{run} cannot be renamed: {error.strerror}") from None
    return run.with_name(name)


def _renamed(config: Config, name: str) -> Config:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, name=name))
