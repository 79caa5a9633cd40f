"""The checkpoints of one run: save, keep the newest and the best, choose the one to resume from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from cifar_dist.checkpoint.contents import CheckpointError, Tensors, TrainState
from cifar_dist.checkpoint.folder import read_state, write
from cifar_dist.checkpoint.marker import verify
from cifar_dist.errors import UserError
from cifar_dist.files import discard, folder_atomic, free_name, leftovers, link_atomic

_FOLDER = re.compile(r"step-(\d{8,12})")


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """Parse the step in a checkpoint folder's name; None for any other name."""
    match = _FOLDER.fullmatch(path.name)
    return int(match[1]) if match else None


def listing(folder: Path) -> list[Path]:
    """List the checkpoints of a run, newest first, without verifying them."""
    found = [path for path in folder.glob("step-*") if step_of(path) is not None and path.is_dir()]
    return sorted(found, key=lambda path: step_of(path) or 0, reverse=True)


def save(folder: Path, tensors: Tensors, state: TrainState) -> Path:
    """Write a checkpoint and point ``latest`` (and ``best``, if it is the best) at it.

    Args:
        folder: the run's ``checkpoints``.
        tensors, state: its contents.

    Raises:
        OSError: it cannot be written; nothing half-written remains.
    """
    target = folder / folder_name(state.step)
    write(target, tensors, state)
    _link(target, best=state.is_best)
    return target


def _link(path: Path, *, best: bool) -> None:
    link_atomic(path.with_name("latest"), path.name)
    if best:
        link_atomic(path.with_name("best"), path.name)


def copy_to(source: Path, folder: Path) -> None:
    """Begin the checkpoints of another run with a copy of ``source``, and of the best one if that is older.

    Args:
        source: a checkpoint.
        folder: ``checkpoints`` of the other run; a kill leaves it empty or complete. Damaged checkpoints stay in it.

    Raises:
        CheckpointError: ``source`` changed while it was copied.
    """
    best = source.with_name("best").resolve()
    copied = [source]
    if step_of(best) is not None and (step_of(best) or 0) < (step_of(source) or 0) and best.is_dir():
        copied.insert(0, best)
    damaged = list(folder.glob("*.damaged*"))
    with folder_atomic(folder, replace=True) as temporary:
        for path in copied:
            target = temporary / path.name
            try:
                shutil.copytree(path, target, copy_function=shutil.copyfile)
            except (FileNotFoundError, shutil.Error):
                raise CheckpointError(f"{path} was deleted while it was copied; run the same command again") from None
            verify(target)
            _link(target, best=path == best or read_state(target).is_best)
        for path in damaged:
            path.rename(temporary / path.name)


def prune(folder: Path, keep: int) -> None:
    """Delete all checkpoints except the newest ``keep`` and the best one, and what a killed save left.

    Call it only while no other process writes here.
    """
    for path in (*surplus(folder, keep), *leftovers(folder)):
        discard(path)


def surplus(folder: Path, keep: int) -> list[Path]:
    """List the checkpoints that are neither among the newest ``keep`` nor the best one."""
    best = (folder / "best").resolve()
    return [path for path in listing(folder)[keep:] if path.resolve() != best]


def choose(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest intact checkpoint, and one line for each damaged one that was renamed.

    A damaged one is renamed ``step-N.damaged``, so that the next resume ignores it and it can be inspected. A save that
    was killed between its last two renames is completed first. Call it only while no other process writes here.
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
        _link(path, best=state.is_best)
        return path, notes
    return None, notes


def is_adoptable(leftover: Path) -> bool:
    """Whether an intact checkpoint lost its name because a save in its place was killed between two renames."""
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
        if is_adoptable(leftover):
            leftover.rename(leftover.with_name(leftover.name.split(".")[1]))


def named(folder: Path, which: str) -> Path:
    """Return the checkpoint that the user asks for, verified: ``best``, ``latest`` or a step number.

    Raises:
        UserError: it does not exist, or is damaged.
    """
    known = {str(step_of(path)): path for path in listing(folder)}
    if not known:
        raise UserError(f"{folder} has no checkpoint yet; train first")
    steps = ", ".join(known)
    newest = next(iter(known.values()))
    if which == "latest":
        path = newest
    elif which == "best":
        path = (folder / "best").resolve() if (folder / "best").is_dir() else newest  # before the first evaluation
    elif not which.isdecimal():
        raise UserError(f"checkpoint '{which}' is neither best, latest nor a step; steps here: {steps}")
    elif (step := which.lstrip("0") or "0") in known:
        path = known[step]
    else:
        raise UserError(f"{folder} has no checkpoint of step {which}; steps here: {steps}")
    try:
        verify(path)
    except CheckpointError as error:
        raise UserError(f"{path}: {error}; use another of these steps: {steps}") from None
    return path
