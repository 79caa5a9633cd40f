"""The checkpoints of a run as a list to look at, damaged ones included. Reads their sizes and states, and no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cifar_dist.checkpoint.contents import CheckpointError, NewerCheckpointError, TrainState
from cifar_dist.checkpoint.folder import read_state
from cifar_dist.checkpoint.history import best, listing, set_aside
from cifar_dist.checkpoint.marker import damages
from cifar_dist.files import complete
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

    Raises:
        OSError: one cannot be read.
    """
    found = listing(folder)
    highest = best(folder)
    entries = []
    for path in found:
        state, problems = inspect(path, checksums=False)
        roles = [role for role, holder in (("newest", found[0]), ("best", highest)) if path == holder]
        entries.append(_entry(path, state, ", ".join(problems or roles)))
    return entries + [_entry(path, None, f"damaged, set aside as {path.name}") for path in set_aside(folder)]


def inspect(path: Path, *, checksums: bool = True) -> tuple[TrainState | None, list[str]]:
    """Return the state of a checkpoint, and all that is wrong with it; None if anything is. Renames nothing.

    Raises:
        OSError: it cannot be read, which says nothing about it.
    """
    try:
        problems = [f"damaged: {damage}" for damage in damages(path, checksums=checksums)]
        return (None, problems) if problems else (read_state(path), [])
    except CheckpointError as error:
        return None, [f"damaged: {error}"]
    except NewerCheckpointError as error:
        return None, [str(error)]


def _entry(path: Path, state: TrainState | None, what: str) -> ListedCheckpoint:
    facts = [place.stat() for place in (path, *complete(path)) if place.is_file()] or [path.stat()]
    step = step_of(path.with_name(path.name.partition(".")[0])) or 0  # without .damaged
    written = max(fact.st_mtime for fact in facts)
    return ListedCheckpoint(path, step, state, what, sum(fact.st_size for fact in facts), written)
