"""The checkpoints of one run: save, keep the newest and the best, choose the one to resume from."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from cifar_dist.checkpoint.contents import (
    CheckpointError,
    NewerCheckpointError,
    NoCheckpointLeftError,
    Tensors,
    TrainState,
)
from cifar_dist.checkpoint.folder import copy, read_state, write
from cifar_dist.checkpoint.marker import identity, verify
from cifar_dist.errors import UserError, quoted
from cifar_dist.files.atomic import folder_atomic
from cifar_dist.files.folders import discard, exists, free_name, list_complete
from cifar_dist.files.links import has_links, link_atomic
from cifar_dist.files.temporary import leftovers
from cifar_dist.formatting import and_more, percent
from cifar_dist.step_folder import step_name, step_of

OPTION: Final = "--checkpoint"
"""With which commands that predict take a checkpoint, or a file of weights."""

_LISTED: Final = 20  # steps in a message


def listing(folder: Path) -> list[Path]:
    """List the checkpoints of a run, newest first, without verifying them.

    Raises:
        OSError: the folder cannot be read.
    """
    while True:
        found = [path for path in list_complete(folder) if step_of(path) is not None]
        kept = [path for path in found if path.is_dir()]
        if kept or all(map(os.path.lexists, found)):
            return sorted(kept, key=lambda path: step_of(path) or 0, reverse=True)
        # A run that trains has deleted all that were found, and has saved another one before.


def list_steps(paths: Sequence[Path]) -> str:
    """Name the steps of checkpoints, of many the first: ``120, 100, 80``."""
    return and_more([str(step_of(path)) for path in paths[:_LISTED]], len(paths))


def set_aside(folder: Path) -> list[Path]:
    """List the damaged checkpoints that :func:`choose` renamed."""
    return [path for path in list_complete(folder) if path.name.startswith("step-") and ".damaged" in path.name]


def save(folder: Path, tensors: Tensors, state: TrainState) -> Path:
    """Write a checkpoint and point ``latest`` (and ``best``, if it is the best) at it.

    Args:
        folder: the run's ``checkpoints``.
        tensors, state: its contents.

    Raises:
        OSError: it cannot be written; nothing half-written remains.
    """
    target = folder / step_name(state.step)
    write(target, tensors, state)
    link(target, best=state.is_best)
    return target


def replace_state(path: Path, state: TrainState) -> None:
    """Give a checkpoint another state, and point ``best`` at the one that is the best then.

    A kill leaves the old state or the new one; :func:`choose` completes the rest.

    Raises:
        CheckpointError: it is damaged.
        OSError: it cannot be written; it is as it was.
    """
    with folder_atomic(path, replace=True) as temporary:
        copy(path, temporary, state)
    _point_best(path.parent)


def link(path: Path, *, best: bool) -> None:
    """Point ``latest`` at a checkpoint, and ``best`` if it is the best; leave a sign that the run has been saved."""
    _point_at(path, best=best)
    _leave_sign(path.parent)


def _leave_sign(folder: Path) -> None:
    sign = _sign_of_saves(folder)
    if not os.path.lexists(sign):
        sign.touch()


def _sign_of_saves(folder: Path) -> Path:
    """Return the file that marks a run which has saved checkpoints: without them it is refused, not started again."""
    return folder.with_name(f".{folder.name}.saved")


def _point_at(path: Path, *, best: bool) -> None:
    link_atomic(path.with_name("latest"), path.name)
    if best:
        link_atomic(path.with_name("best"), path.name)


def _point_best(folder: Path, until: int | None = None) -> None:
    """Point ``best`` at the checkpoint that :func:`best` finds; without one there is no such link."""
    highest = best(folder, until)
    if highest is None:
        discard(folder / "best")
    else:
        link_atomic(folder / "best", highest.name)


def links_note(folder: Path) -> str:
    """Say that the file system of ``folder`` has no symbolic links, on which nothing here depends; empty if it has.

    Raises:
        OSError: the folder cannot be written.
    """
    if has_links(folder):
        return ""
    return (
        f"{folder} has no links best and latest, because its file system has no symbolic links; commands find both "
        f"all the same: {OPTION} best"
    )


def copy_to(source: Path, folder: Path, state: TrainState, highest: Path | None) -> None:
    """Begin the checkpoints of another run with a copy of ``source``, and of the best one of that time.

    Args:
        source: a checkpoint.
        folder: ``checkpoints`` of the other run; a kill leaves it empty or complete. Damaged checkpoints stay in it.
        state: of the copy of ``source``.
        highest: the best checkpoint, which may be ``source``; None for none.

    Raises:
        CheckpointError: ``source`` changed while it was copied.
        OSError: it cannot be read, or ``folder`` not be written.
    """
    copied = {source: state}
    if highest not in (None, source):
        copied = {highest: read_state(highest), **copied}
    damaged = list(folder.glob("*.damaged*"))
    with folder_atomic(folder, replace=True) as temporary:
        for path, its_state in copied.items():
            target = temporary / path.name
            target.mkdir()
            try:
                copy(path, target, its_state)
            except FileNotFoundError:
                raise CheckpointError(f"{path} was deleted while it was copied; run the same command again") from None
            _point_at(target, best=path == highest)
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
    old = listing(folder)[keep:]
    kept = best(folder) if old else None
    return [path for path in old if path != kept]


def best(folder: Path, until: int | None = None) -> Path | None:
    """Return the checkpoint with the highest validation accuracy; None before the first evaluation, or if it is lost.

    It is found by the states of the checkpoints, because a link may be missing or point at another one.

    Args:
        folder: the run's ``checkpoints``.
        until: leave out checkpoints after this step.
    """
    found = [path for path in listing(folder) if until is None or (step_of(path) or 0) <= until]
    states = {path: state for path in found if (state := _state(path)) is not None}
    highest = next((state.best_val_accuracy for state in states.values()), None)
    linked = (folder / "best").resolve().name  # earlier versions saved a step again without `is_best`
    reached = [path for path, state in states.items() if highest is not None and state.val_accuracy == highest]
    marked = [path for path in reached if states[path].is_best]
    return next(iter(marked or [path for path in reached if path.name == linked]), None)


def best_of(folder: Path, steps: Collection[int]) -> Path | None:
    """Return the checkpoint with the highest validation accuracy of those of ``steps`` that are kept; None for none.

    Unlike with :func:`best`, an accuracy whose checkpoint is lost does not count.
    """
    states = {path: _state(path) for path in listing(folder) if step_of(path) in steps}
    reached = {path: one.val_accuracy for path, one in states.items() if one is not None and one.is_best}
    known = {path: accuracy for path, accuracy in reached.items() if accuracy is not None}
    return max(known, key=lambda path: known[path], default=None)


def _state(path: Path) -> TrainState | None:
    """Read a state; None if it is damaged or of a newer program."""
    try:
        return read_state(path)
    except (CheckpointError, NewerCheckpointError):
        return None


def choose(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest intact checkpoint, and one line for each damaged one that was renamed; None for a new run.

    A damaged one is renamed ``step-N.damaged``, so that the next resume ignores it and it can be inspected. A save that
    was killed between its last two renames is completed first, and what else it left is deleted. Call it only while no
    other process writes here.

    Raises:
        NewerCheckpointError: the newest intact one is of a newer program; nothing is renamed.
        NoCheckpointLeftError: checkpoints existed, and none is intact; nothing is renamed.
        OSError: one cannot be read, which says nothing about it; nothing is renamed.
    """
    _adopt(folder)
    damaged: dict[Path, CheckpointError] = {}
    for path in listing(folder):
        try:
            _verified_state(path)
        except CheckpointError as error:
            damaged[path] = error
            continue
        link_atomic(folder / "latest", path.name)
        _point_best(folder, until=step_of(path))
        _leave_sign(folder)
        for left in leftovers(folder):
            discard(left)
        return path, [_rename_damaged(one, error) for one, error in damaged.items()]
    if lost := _signs_of_lost(folder, [f"{path.name}: {error}" for path, error in damaged.items()]):
        raise NoCheckpointLeftError(f"{folder} has no intact checkpoint ({'; '.join(lost)})")
    return None, []


def _signs_of_lost(folder: Path, damaged: Sequence[str] = ()) -> list[str]:
    """Say what shows that a run had checkpoints, of which none is intact."""
    aside = [f"{path.name} was set aside" for path in set_aside(folder)]
    links = [path for path in (folder / "latest", folder / "best") if path.is_symlink() and not exists(path)]
    dangling = [f"{path.name} points at one that does not exist" for path in links]
    was_saved = os.path.lexists(_sign_of_saves(folder))
    return [*damaged, *aside, *dangling] or ["all were deleted"] * was_saved


def absence(folder: Path, option: str = OPTION) -> UserError:
    """Return the error of a command for checkpoints where ``folder`` has none: it never had any, or has lost them.

    Args:
        folder: the run's ``checkpoints``.
        option: with which the command takes a file of weights.
    """
    final = _way_to_final_weights(folder, option)
    lost = _signs_of_lost(folder) or ["all were deleted"] * bool(final)
    if lost:
        way = final or f", or start this run over: rm -r {quoted(folder.parent)}"
        return NoCheckpointLeftError(f"{folder} has no intact checkpoint ({'; '.join(lost)}); restore one{way}")
    return UserError(f"{folder} has no checkpoint yet; train first")


def _way_to_final_weights(folder: Path, option: str) -> str:
    """Return what to use where no checkpoint of a run is intact, after ", or"; empty before the run has ended."""
    final = folder.with_name("final") / "model.safetensors"  # as RunFolder names it
    return f", or use its final weights: {option} {quoted(final)}" if final.is_file() else ""


def _rename_damaged(path: Path, error: CheckpointError) -> str:
    aside = path.rename(free_name(path.with_name(f"{path.name}.damaged")))
    return f"checkpoint {path.name} was set aside as {aside.name}: {error}"


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


def named(folder: Path, which: str, option: str = OPTION) -> Path:
    """Return the checkpoint that the user asks for, as :func:`find_named` does, verified.

    Raises:
        UserError: it does not exist, or is damaged.
        OSError: it cannot be read.
    """
    path = find_named(folder, which, option)
    saved = identity(path)
    try:
        _verified_state(path)
    except CheckpointError as error:
        if not exists(path) or identity(path) != saved:  # the run is training, and has deleted it or saved it again
            return named(folder, which, option)
        others = (other for other in listing(folder) if other != path)
        intact = next((step_of(other) for other in others if is_intact(other)), None)
        none_left = f"no other is intact; restore one{_way_to_final_weights(folder, option)}"
        way = none_left if intact is None else f"use another step: {intact}"
        raise UserError(f"{path}: {error}; {way}") from None
    return path


def _verified_state(path: Path) -> TrainState:
    """Verify all of a checkpoint, and read its state.

    Raises:
        CheckpointError, NewerCheckpointError: it is damaged, or of a newer program.
        OSError: it cannot be read.
    """
    verify(path)
    return read_state(path)


def is_intact(path: Path) -> bool:
    """Whether all of a checkpoint can be read, and by this program."""
    try:
        _verified_state(path)
    except (CheckpointError, NewerCheckpointError, OSError):
        return False
    return True


def is_name(text: str) -> bool:
    """Whether a text names a checkpoint of a run, as for :func:`find_named`, whatever files have that name."""
    return text in ("best", "latest") or text.isdecimal() or ("/" not in text and step_of(Path(text)) is not None)


def find_named(folder: Path, which: str, option: str = OPTION) -> Path:
    """Return the checkpoint that the user asks for: ``best``, ``latest``, a step number or ``step-00000120``.

    Before the first evaluation, ``best`` is the newest.

    Args:
        folder: the run's ``checkpoints``.
        which: as above.
        option: as for :func:`absence`.

    Raises:
        UserError: it does not exist.
        OSError: the folder cannot be read.
    """
    known = {str(step_of(path)): path for path in listing(folder)}
    if not known:
        raise absence(folder, option)
    steps = list_steps(list(known.values()))
    newest = next(iter(known.values()))
    if (step := step_of(Path(which))) is not None and "/" not in which:
        which = str(step)
    if which == "latest":
        path = newest
    elif which == "best":
        path = best(folder) or _newest_unmeasured(newest, steps)
    elif not which.isdecimal():
        raise UserError(f"checkpoint '{which}' is not best, latest, a step or a path; steps here: {steps}")
    elif (number := which.lstrip("0") or "0") in known:
        path = known[number]
    else:
        raise UserError(f"{folder} has no checkpoint of step {which}; steps here: {steps}")
    return path


def _newest_unmeasured(newest: Path, steps: str) -> Path:
    """Return the newest checkpoint in place of the best, which no evaluation has determined yet."""
    state = _state(newest)
    if state is not None and state.best_val_accuracy is not None:
        raise UserError(
            f"{newest.parent} has lost its best checkpoint, of validation accuracy "
            f"{percent(state.best_val_accuracy)}; use another: latest, or one of: {steps}"
        )
    return newest
