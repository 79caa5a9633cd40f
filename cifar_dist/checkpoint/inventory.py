"""The checkpoints of a run as a list to look at, damaged ones included. Reads their sizes and states, and no tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.checkpoint.contents import CheckpointError, NewerCheckpointError, TrainState
from cifar_dist.checkpoint.folder import read_state
from cifar_dist.checkpoint.history import best, listing, set_aside
from cifar_dist.checkpoint.marker import damages, identity
from cifar_dist.files.folders import exists, list_complete
from cifar_dist.step_folder import step_of


@dataclass(frozen=True)
class ListedCheckpoint:
    """A checkpoint as a line of the list.

    Attributes:
        path: its folder.
        step: by the name of the folder.
        state: None if it is damaged.
        what: ``newest``, ``best``, both, or how it is damaged; empty for any other.
        bytes: of its files.
        written: time of its last file, seconds since 1970.
    """

    path: Path
    step: int
    state: TrainState | None
    what: str
    bytes: int
    written: float


def inventory(folder: Path) -> list[ListedCheckpoint]:
    """List the checkpoints of a run, newest first, then those that were set aside.

    A run that is training may delete some of them meanwhile, which are not listed.

    Raises:
        OSError: one cannot be read.
    """
    while True:
        found, highest = listing(folder), best(folder)
        entries = []
        for path in found:
            roles = [role for role, holder in (("newest", found[0]), ("best", highest)) if path == holder]
            entries.append(_entry(path, roles))
        aside = [_measured(path, None, f"damaged, set aside as {path.name}") for path in set_aside(folder)]
        if any(entries) or not found:  # else all have been deleted, and another one was saved before
            return [entry for entry in (*entries, *aside) if entry is not None]


def inspect(path: Path, *, checksums: bool = True) -> tuple[TrainState | None, list[str]]:
    """Return the state of a checkpoint, and all that is wrong with it; None if anything is. Renames nothing.

    One that was deleted meanwhile has no marker; see :func:`~cifar_dist.files.folders.exists`.

    Raises:
        OSError: it cannot be read, which says nothing about it.
    """
    while True:
        saved = identity(path)
        try:
            problems = [f"damaged: {damage}" for damage in damages(path, checksums=checksums)]
            state = None if problems else read_state(path)
        except CheckpointError as error:
            state, problems = None, [f"damaged: {error}"]
        except NewerCheckpointError as error:
            state, problems = None, [str(error)]
        if not problems or identity(path) == saved:  # else a run that is training has saved it again
            return state, problems


def _entry(path: Path, roles: Sequence[str]) -> ListedCheckpoint | None:
    """Describe a checkpoint; None if it has been deleted."""
    state, problems = inspect(path, checksums=False)
    if problems and not exists(path):
        return None
    return _measured(path, state, ", ".join(problems or roles))


def _measured(path: Path, state: TrainState | None, what: str) -> ListedCheckpoint | None:
    try:
        facts = [place.stat() for place in (path, *list_complete(path)) if place.is_file()] or [path.stat()]
    except FileNotFoundError:  # deleted, or saved again
        return _measured(path, state, what) if exists(path) else None
    step = step_of(path.with_name(path.name.partition(".")[0])) or 0  # without .damaged
    written = max(fact.st_mtime for fact in facts)
    return ListedCheckpoint(path, step, state, what, sum(fact.st_size for fact in facts), written)
