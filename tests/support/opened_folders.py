"""Run folders that are opened as a job opens them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cifar_dist.config import Config, ModelConfig, RunConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.opening import open_folder

CONFIG = Config(run=RunConfig(name="it"), model=ModelConfig("tiny-cnn", {"dropout": 0.1}))


def open_and_end(path: Path, config: Config, manifest: Manifest) -> None:
    """Open a run and end: the lock is released with the object."""
    open_folder(RunFolder(path), config, manifest)


def refusal(path: Path, config: Config, manifest: Manifest) -> str:
    with pytest.raises(UserError) as caught:
        open_and_end(path, config, manifest)
    assert "\n" not in str(caught.value)
    return str(caught.value)
