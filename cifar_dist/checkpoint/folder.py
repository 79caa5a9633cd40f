"""Write one checkpoint folder, and read it. Always writes the newest layout."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cifar_dist.checkpoint import version_1
from cifar_dist.checkpoint.contents import Averaged, Checkpoint, CheckpointError, Tensors, TrainState
from cifar_dist.checkpoint.marker import (
    AVERAGED,
    AVERAGED_STATISTICS,
    MODEL_V1,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    read_file,
    read_marker,
    write_marker,
)
from cifar_dist.errors import UserError
from cifar_dist.files import folder_atomic

_STATE = TypeAdapter(TrainState)
_FOLDER = re.compile(r"step-(\d{8,12})")
_OS_ERROR = re.compile(r"\b(?:code: |os error )(\d+)")  # as safetensors shows the number of an OSError


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """Parse the step in a checkpoint folder's name; None for any other name."""
    match = _FOLDER.fullmatch(path.name)
    return int(match[1]) if match else None


def write(target: Path, tensors: Tensors, state: TrainState) -> None:
    """Write the checkpoint ``target``, complete or not at all, replacing one of that name.

    Raises:
        OSError: it cannot be written; nothing half-written remains.
    """
    files = {WEIGHTS: tensors.weights, OPTIMIZER: tensors.optimizer}
    if tensors.averaged is not None:
        files |= {AVERAGED: tensors.averaged.weights, AVERAGED_STATISTICS: tensors.averaged.statistics}
    with folder_atomic(target, replace=True) as path:
        for name, content in files.items():
            save_tensors(content, path / name)
        (path / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
        write_marker(path, [*files, STATE])


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        found = _OS_ERROR.search(str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(error), str(path)) from None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that :func:`~cifar_dist.checkpoint.marker.verify` has passed.

    Raises:
        CheckpointError: one of its files is not what it should be.
        OSError: one of its files cannot be read.
    """
    state, marker = read_state(path), read_marker(path)
    try:
        loaded = {name: load_file(path / name) for name in marker.files if name != STATE}
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if marker.version == 1:
        tensors = version_1.convert_tensors(loaded[MODEL_V1], loaded[OPTIMIZER])
    else:
        averaged = Averaged(loaded[AVERAGED], loaded[AVERAGED_STATISTICS]) if AVERAGED in loaded else None
        tensors = Tensors(loaded[WEIGHTS], averaged, loaded[OPTIMIZER])
    return Checkpoint(tensors, state, path)


def read_state(path: Path) -> TrainState:
    """Read the state of a checkpoint.

    Raises:
        CheckpointError: it is missing or invalid, or belongs to another step than the folder's name says.
        OSError: it cannot be read.
    """
    version = read_marker(path).version
    text = read_file(path, STATE)
    try:
        state = version_1.parse_state(text) if version == 1 else _STATE.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise CheckpointError(f"{path / STATE} cannot be used: {what:.300}") from None
    if step_of(path) not in (None, state.step):
        raise CheckpointError(f"{path} is a copy of {folder_name(state.step)}: its {STATE} says step {state.step}")
    return state


def evaluated_weights(path: Path) -> Path:
    """Return the file with the weights to evaluate and export: the averaged ones if they exist.

    Raises:
        CheckpointError: the checkpoint's marker cannot be read.
    """
    marker = read_marker(path)
    return path / next(name for name in (AVERAGED, WEIGHTS, MODEL_V1) if name in marker.files)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load a checkpoint's weights into ``module``.

    Raises:
        UserError: they belong to another model; the message names ``path``.
    """
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        what = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} has the weights of another model: {what}") from None
