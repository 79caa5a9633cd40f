"""Remove superfluous files of a run, but never its newest and best checkpoint, its final weights, or its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cifar_dist import checkpoint
from cifar_dist.checkpoint.inventory import inspect
from cifar_dist.errors import UserError, quoted
from cifar_dist.files.folders import discard
from cifar_dist.files.temporary import abandoned
from cifar_dist.run_folder import RunFolder
from cifar_dist.runs.listing import disk_bytes
from cifar_dist.tracking.begun import has_begun


@dataclass(frozen=True)
class Removable:
    """A file or folder that can be removed.

    Attributes:
        path: a file, or a folder with its contents.
        why: the reason, in a few words.
        bytes: space that the removal frees.
    """

    path: Path
    why: str
    bytes: int


def removable(run: RunFolder) -> list[Removable]:
    """List what :func:`clean` would remove from a run; nothing while it trains.

    Raises:
        UserError: a checkpoint that would remain is damaged.
    """
    return [] if run.in_use() else _useless(run)


def clean(run: RunFolder) -> list[Removable]:
    """Remove superfluous files of a run; return what was removed.

    Raises:
        InUseError: the run is training; nothing is removed.
        UserError: a checkpoint that would remain is damaged; nothing is removed. Or something could not be removed.
        OSError: the folder cannot be written.
    """
    if not run.is_of_this_program():
        return []  # and no lock in it
    with run.locked():
        items = _useless(run)
        discarded = [run.discard() if item.path == run.path else discard(item.path) for item in items]
    errors = [error for error in discarded if error]
    if errors:
        removed = f"{len(items) - len(errors)} of {len(items)} removed"
        raise UserError(f"{removed}, but {errors[0].filename} cannot be deleted: {errors[0].strerror}")
    return items


def _useless(folder: RunFolder) -> list[Removable]:
    return [Removable(path, why, disk_bytes(path)) for path, why in _with_reasons(folder)]


def _with_reasons(folder: RunFolder) -> Iterator[tuple[Path, str]]:
    if not folder.is_of_this_program():  # but some folder with a config.toml
        return
    if not has_begun(folder):
        if not (folder.has_foreign_files() or folder.job_script.exists()):  # its job may be waiting
            yield folder.path, "never finished a step"
        return
    yield from ((path, "left by a kill") for path in folder.leftovers())
    left = abandoned(folder.checkpoints)
    yield from ((path, "left by a kill") for path in left if not checkpoint.is_adoptable(path))
    yield from ((path, "damaged") for path in checkpoint.set_aside(folder.checkpoints))
    yield from ((path, "final weights before an extension") for path in folder.superseded())
    if folder.is_finished():  # until then, older checkpoints are a fallback for a damaged one
        yield from ((path, "neither newest nor best") for path in _surplus(folder.checkpoints))


def _surplus(checkpoints: Path) -> list[Path]:
    """List the checkpoints that are neither the newest nor the best one.

    Raises:
        UserError: one of these two is damaged, or a damaged one may be the best.
    """
    surplus = checkpoint.surplus(checkpoints, keep=1)
    is_best_known = checkpoint.best(checkpoints) is not None
    for path in checkpoint.listing(checkpoints) if surplus else ():
        if path in surplus and is_best_known:
            continue
        for problem in inspect(path)[1]:
            raise UserError(
                f"{path.name} {problem}; others may be needed in its place, unless you delete it first: "
                f"rm -r {quoted(path)}"
            )
    return surplus
