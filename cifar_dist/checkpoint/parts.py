"""A checkpoint that several processes write: each a part, and rank 0 what completes it.

Rank 0 opens the folder under a temporary name; each process writes its part into it and flushes it to the disk; and
once rank 0 knows the sizes and checksums of all parts, it writes state and marker, and the folder gets its name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from cifar_dist.checkpoint.contents import Tensors, TrainState
from cifar_dist.checkpoint.folder import complete_folder, files_of
from cifar_dist.checkpoint.history import link
from cifar_dist.checkpoint.marker import FileFacts, measure, part_name
from cifar_dist.checkpoint.tensor_files import save_tensors
from cifar_dist.config.run import SHARE_DIR
from cifar_dist.errors import UserError
from cifar_dist.files.atomic import folder_atomic, fsync
from cifar_dist.step_folder import step_name


class UnfinishedCheckpoint:
    """The folder of a checkpoint that is written in parts, until it is complete. For rank 0.

    Args:
        folder: the run's ``checkpoints``.
        state: the progress of the run.

    Attributes:
        path: the folder that receives the parts; its name is temporary.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, folder: Path, state: TrainState) -> None:
        self._target, self._state = folder / step_name(state.step), state
        self._open = contextlib.ExitStack()
        self.path = self._open.enter_context(folder_atomic(self._target, replace=True))

    def complete(self, parts: Iterable[Mapping[str, FileFacts]]) -> Path:
        """Complete the checkpoint from all its parts and return it; ``latest`` (and ``best``) point at it.

        Raises:
            OSError: it cannot be written; nothing half-written remains.
        """
        files = {name: facts for part in parts for name, facts in part.items()}
        with self._open:
            complete_folder(self.path, files, self._state)
        link(self._target, best=self._state.is_best)
        return self._target

    def discard(self) -> None:
        """Delete what exists of it."""
        with contextlib.suppress(_DiscardedError), self._open:
            raise _DiscardedError


class _DiscardedError(Exception):
    pass


def write_part(path: Path, tensors: Tensors, part: int, parts: int) -> dict[str, FileFacts]:
    """Write a part of a checkpoint and flush it to the disk; return its files.

    Args:
        path: of the :class:`UnfinishedCheckpoint`.
        tensors: those of this part. Each tensor of the checkpoint is in one part.
        part, parts: its number, counted from 1, and how many there are.

    Raises:
        UserError: this process does not see the folder.
        OSError: it cannot be written.
    """
    if not path.is_dir():
        raise UserError(
            f"process {part} of {parts} does not see {path.parent}, where each writes its part of a checkpoint; "
            f"{SHARE_DIR}"
        )
    files = {part_name(name, part, parts): content for name, content in files_of(tensors).items()}
    for name, content in files.items():
        save_tensors(content, path / name)
        fsync(path / name)
    return measure(path, files)
