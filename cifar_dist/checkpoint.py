"""Checkpoints: save, verify, choose, load.

::

    checkpoints/step-00001234/
      model.safetensors       full weights and buffers by name
      optimizer.safetensors   full optimizer state as KEY/PARAMETER
      state.json              plain numbers: step, epochs evaluated, best so far, loss scaler
      COMPLETE.json           size and sha256 of the three, written last
    checkpoints/latest, best  links

A folder gets its name after everything in it is on the disk, so it is complete or absent; and it is verified all
the same before it is believed, because disks are not perfect. One that fails is set aside by name and the one
before it is taken. Nothing here can execute what it reads, and nothing here is collective: rank 0 saves and chooses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cifar_dist.errors import UserError
from cifar_dist.files import discard, folder_atomic, free_name, leftovers, link_atomic, sha256

VERSION: Final = 1
MARKER = "COMPLETE.json"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"

_FOLDER = re.compile(r"step-(\d{8,12})")


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message says which part of it and why."""


class _State(BaseModel, strict=True, extra="allow"):
    """What ``state.json`` may hold: a file that says anything else is not believed."""

    version: Literal[1] = VERSION
    step: Annotated[int, Field(ge=0, lt=10**12)]
    evaluated: Annotated[int, Field(ge=0, lt=10**12)] = 0
    val_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    best: Annotated[float, Field(ge=-1, le=1)] = -1.0
    scaler: dict[str, int | float] = {}
    is_best: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        model: weights and buffers by name.
        optimizer: optimizer state as ``KEY/PARAMETER``.
        state: plain JSON numbers and strings; at least ``step``, optimizer steps done, ``evaluated``,
            ``val_accuracy``, ``best`` and ``scaler``.
        path: where it was loaded from or is saved.
    """

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]
    path: Path

    @property
    def step(self) -> int:
        return int(self.state["step"])


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step in a checkpoint folder's name; None for any other name."""
    match = _FOLDER.fullmatch(path.name)
    return int(match[1]) if match else None


def listing(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first; whether they are whole is not looked at."""
    found = [path for path in folder.glob("step-*") if step_of(path) is not None and path.is_dir()]
    return sorted(found, key=lambda path: step_of(path) or 0, reverse=True)


def save(
    folder: Path, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any], *, best: bool
) -> Path:
    """Write a checkpoint and point ``latest`` (and ``best``) at it.

    Args:
        folder: the run's ``checkpoints``.
        model, optimizer, state: see :class:`Checkpoint`.
        best: whether it is the best so far.

    Raises:
        OSError: the disk would not take it; nothing half-written is left.
    """
    target = folder / folder_name(state["step"])
    content = {"version": VERSION, **state, "is_best": best}
    with folder_atomic(target, replace=True) as path:
        try:
            save_file(dict(model), path / MODEL)
            save_file(dict(optimizer), path / OPTIMIZER)
        except SafetensorError as error:
            raise OSError(f"{target} cannot be written: {error}") from None
        (path / STATE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        parts = {name: path / name for name in (MODEL, OPTIMIZER, STATE)}
        marker = {name: {"bytes": part.stat().st_size, "sha256": sha256(part)} for name, part in parts.items()}
        (path / MARKER).write_text(json.dumps({"version": VERSION, "files": marker}, indent=2) + "\n", encoding="utf-8")
    _link(target, best=best)
    return target


def _link(path: Path, *, best: bool) -> None:
    link_atomic(path.with_name("latest"), path.name)
    if best:
        link_atomic(path.with_name("best"), path.name)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best one, and what a killed save left.

    Only while no other process writes here.
    """
    for path in (*surplus(folder, keep), *leftovers(folder)):
        discard(path)


def surplus(folder: Path, keep: int) -> list[Path]:
    """The checkpoints that are neither among the newest ``keep`` nor the best one."""
    best = (folder / "best").resolve()
    return [path for path in listing(folder)[keep:] if path.resolve() != best]


def verify(path: Path) -> None:
    """Check a checkpoint against its own marker.

    Raises:
        CheckpointError: a part is missing, truncated or changed.
    """
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        if marker["version"] != VERSION:
            raise CheckpointError(f"its version is {marker['version']!r:.20}, this program reads version {VERSION}")
        files = {name: (int(facts["bytes"]), str(facts["sha256"])) for name, facts in marker["files"].items()}
    except FileNotFoundError:
        raise CheckpointError(f"it has no {MARKER}, so it was never finished") from None
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"its {MARKER} is not readable ({error})") from None
    for name in (MODEL, OPTIMIZER, STATE):
        if name not in files:
            raise CheckpointError(f"its {MARKER} does not list {name}")
        size, checksum = files[name]
        part = path / name
        if not part.is_file():
            raise CheckpointError(f"{name} is missing")
        if part.stat().st_size != size:
            raise CheckpointError(f"{name} has {part.stat().st_size} of {size} bytes")
        try:
            found = sha256(part)
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read ({error.strerror})") from None
        if found != checksum:
            raise CheckpointError(f"{name} is not what was saved (sha256 differs)")


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that :func:`verify` has passed.

    Raises:
        CheckpointError: a part cannot be read.
    """
    state = read_state(path)
    try:
        return Checkpoint(load_file(path / MODEL), load_file(path / OPTIMIZER), state, path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def read_state(path: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint, see :class:`Checkpoint`.

    Raises:
        CheckpointError: it cannot be read, or holds what no checkpoint does.
    """
    try:
        return _State.model_validate_json((path / STATE).read_bytes()).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join([*map(str, first["loc"]), first["msg"]])
    except OSError as error:
        what = str(error.strerror)
    raise CheckpointError(f"{path / STATE} cannot be used: {what}")


def choose(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and one line for each that was set aside on the way.

    A bad one is renamed ``step-N.damaged``: out of the way of the next start, and there for who wants to look.
    What a save left undone that was killed near its end is done first. Only while no other process writes here.
    """
    notes: list[str] = []
    _adopt(folder)
    for path in listing(folder):
        try:
            verify(path)
            state = read_state(path)
        except CheckpointError as error:
            aside = path.rename(free_name(path.with_name(f"{path.name}.damaged")))
            notes.append(f"checkpoint {path.name} was set aside as {aside.name}: {error}")
            continue
        _link(path, best=state["is_best"])
        return path, notes
    return None, notes


def adoptable(leftover: Path) -> bool:
    """Whether it is a whole checkpoint that lost its name when a save in its place was killed between two renames."""
    target = leftover.with_name(leftover.name.split(".")[1])
    if step_of(target) is None or target.exists():
        return False
    try:
        verify(leftover)
    except CheckpointError:
        return False
    return True


def _adopt(folder: Path) -> None:
    for leftover in sorted(folder.glob(".step-*.tmp*")):  # the new one, named by a process id, before the old one
        if adoptable(leftover):
            leftover.rename(leftover.with_name(leftover.name.split(".")[1]))


def named(folder: Path, which: str) -> Path:
    """The checkpoint that a person asks for: ``best``, ``latest`` or a step number; verified.

    Raises:
        UserError: there is none of that name, or it is damaged.
    """
    known = {str(step_of(path)): path for path in listing(folder)}
    if not known:
        raise UserError(f"{folder} holds no checkpoint yet; train first")
    steps = ", ".join(known)
    newest = next(iter(known.values()))
    if which == "latest":
        path = newest
    elif which == "best":
        path = (folder / "best").resolve() if (folder / "best").is_dir() else newest  # nothing was measured yet
    elif not which.isdecimal():
        raise UserError(f"checkpoint '{which}' is neither best, latest nor a step; steps here: {steps}")
    elif (step := which.lstrip("0") or "0") in known:
        path = known[step]
    else:
        raise UserError(f"{folder} has no checkpoint of step {which}; steps here: {steps}")
    try:
        verify(path)
    except CheckpointError as error:
        raise UserError(f"{path}: {error}; take another with --checkpoint: {steps}") from None
    return path


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load a checkpoint's weights.

    Raises:
        UserError: they are of another model.
    """
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        what = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} holds the weights of another model: {what}") from None
