"""Write one checkpoint folder, and read it. Always writes the newest layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from cifar_dist.checkpoint import version_1
from cifar_dist.checkpoint.contents import Averaged, Checkpoint, CheckpointError, Tensors, TrainState
from cifar_dist.checkpoint.marker import (
    AVERAGED,
    AVERAGED_STATISTICS,
    MARKER,
    MODEL_OF_VERSION_1,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    FileFacts,
    measure,
    read_file,
    read_marker,
    verify,
    write_marker,
)
from cifar_dist.checkpoint.tensor_files import read_tensors, save_tensors
from cifar_dist.errors import UserError
from cifar_dist.files.atomic import folder_atomic
from cifar_dist.step_folder import step_name, step_of

_STATE = TypeAdapter(TrainState)


def write(target: Path, tensors: Tensors, state: TrainState) -> None:
    """Write the checkpoint ``target``, complete or not at all, replacing one of that name.

    Raises:
        OSError: it cannot be written; nothing half-written remains.
    """
    with folder_atomic(target, replace=True) as path:
        _fill(path, tensors, state)


def _fill(path: Path, tensors: Tensors, state: TrainState) -> None:
    """Write all files of a checkpoint into the folder ``path``."""
    files = files_of(tensors)
    for name, content in files.items():
        save_tensors(content, path / name)
    complete_folder(path, measure(path, files), state)


def complete_folder(path: Path, files: Mapping[str, FileFacts], state: TrainState) -> None:
    """Write the state and, last, the marker of a checkpoint whose files of tensors are in the folder ``path``."""
    (path / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    write_marker(path, {**files, **measure(path, [STATE])})


def copy(source: Path, target: Path, state: TrainState) -> None:
    """Copy a checkpoint into the empty folder ``target``, with another state.

    Raises:
        CheckpointError: ``source`` is damaged.
        FileNotFoundError: ``source`` was deleted meanwhile.
        OSError: it cannot be read, or ``target`` not be written.
    """
    marker = read_marker(source)
    if marker.version == 1:
        verify(source)
        _fill(target, load(source).tensors, state)
        return
    for name in (*marker.files, MARKER):  # copytree() would lose the number of the error
        with (source / name).open("rb") as original, (target / name).open("wb") as copied:
            shutil.copyfileobj(original, copied)
    verify(target)
    complete_folder(target, {name: facts for name, facts in marker.files.items() if name != STATE}, state)


def files_of(tensors: Tensors) -> dict[str, Mapping[str, Tensor]]:
    """Sort tensors into the files of a checkpoint, by name."""
    files = {WEIGHTS: tensors.weights, OPTIMIZER: tensors.optimizer}
    if tensors.averaged is not None:
        files |= {AVERAGED: tensors.averaged.weights, AVERAGED_STATISTICS: tensors.averaged.statistics}
    return files


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that :func:`~cifar_dist.checkpoint.marker.verify` has passed.

    Raises:
        CheckpointError: one of its files is not what it should be.
        OSError: one of its files cannot be read.
    """
    state, marker = read_state(path), read_marker(path)

    def read(name: str) -> dict[str, Tensor]:
        return read_tensors([path / part for part in marker.parts_of(name)])

    if marker.version == 1:
        tensors = version_1.convert_tensors(read(MODEL_OF_VERSION_1), read(OPTIMIZER))
    else:
        averaged = Averaged(read(AVERAGED), read(AVERAGED_STATISTICS)) if marker.parts_of(AVERAGED) else None
        tensors = Tensors(read(WEIGHTS), averaged, read(OPTIMIZER))
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
        raise CheckpointError(f"{path} is a copy of {step_name(state.step)}: its {STATE} says step {state.step}")
    return state


def evaluated_weights(path: Path) -> tuple[Path, ...]:
    """Return the file, or its parts, with the weights to evaluate and export: the averaged ones if they exist.

    Raises:
        CheckpointError: the checkpoint's marker cannot be read.
    """
    marker = read_marker(path)
    found = next(parts for name in (AVERAGED, WEIGHTS, MODEL_OF_VERSION_1) if (parts := marker.parts_of(name)))
    return tuple(path / part for part in found)


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
