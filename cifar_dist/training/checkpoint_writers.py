"""How a checkpoint reaches the disk while training continues: rank 0 writes all of it, or each rank a part.

Either way a thread writes what was copied for it, and training asks now and then whether it has ended.
"""

from __future__ import annotations

import concurrent.futures
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from cifar_dist import checkpoint
from cifar_dist.checkpoint import Tensors, TrainState
from cifar_dist.checkpoint.marker import FileFacts
from cifar_dist.checkpoint.parts import UnfinishedCheckpoint, write_part
from cifar_dist.config import CheckpointConfig
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.host_copies import Deal
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.errors import StorageError

T = TypeVar("T")

_SHARDED_FROM: Final = 100_000_000  # parameters: 1.2 GB with AdamW, which rank 0 writes in seconds

_ABANDON_SECONDS: Final = 30
"""How long a job that has failed waits for the write under way: it must end within a minute."""
_TOO_SLOW: Final = f"it took longer than {_ABANDON_SECONDS} s"


@dataclass(frozen=True)
class Written:
    """A checkpoint that is complete, and why an older one could not be deleted; empty if that is done."""

    path: Path
    problem: str


class CheckpointWriter(ABC):
    """Writes one checkpoint at a time. All processes call each method but :meth:`is_writing` and :meth:`abandon`.

    Args:
        folder: the run's ``checkpoints``.
        keep: how many of the newest remain.
        ranks: this process among all of the job.
    """

    def __init__(self, folder: Path, keep: int, ranks: Ranks) -> None:
        self._folder, self._keep, self._ranks = folder, keep, ranks
        self._thread = ThreadPoolExecutor(1, "checkpoint")

    @abstractmethod
    def deal(self) -> Deal:
        """Deal the tensors of the next checkpoint to the processes that write it."""

    @abstractmethod
    def begin(self, contents: Tensors, state: TrainState, prepare: Callable[[], None]) -> None:
        """Begin to write a checkpoint.

        Args:
            contents: the tensors that :meth:`deal` leaves to this process.
            state: the progress of the run.
            prepare: called on rank 0 before; it fails with OSError.
        """

    @abstractmethod
    def is_writing(self) -> bool:
        """Whether :meth:`end` would wait for this process."""

    @abstractmethod
    def end(self) -> Written:
        """Wait until the checkpoint is complete.

        Raises:
            StorageError: it cannot be written; nothing half-written remains.
        """

    @abstractmethod
    def abandon(self) -> Written:
        """Complete the checkpoint in a job that has failed, without the other ranks, if that is possible. On rank 0.

        Raises:
            StorageError, OSError: it is not saved.
        """

    def _prune(self, path: Path) -> Written:
        try:
            checkpoint.prune(self._folder, self._keep)
        except OSError as error:  # the next save tries again
            return Written(path, f"an old checkpoint cannot be deleted: {StorageError.of(error, self._folder)}")
        return Written(path, "")


class GatheringWriter(CheckpointWriter):
    """Rank 0 writes the checkpoint, in its thread and without the others."""

    _writing: Future[Written] | None = None  # on rank 0

    def deal(self) -> Deal:
        return Deal(self._ranks.rank, writers=1)

    def begin(self, contents: Tensors, state: TrainState, prepare: Callable[[], None]) -> None:
        if not self._ranks.is_main:
            return
        try:
            prepare()
        except OSError as error:
            self._writing = _failed(error)
        else:
            self._writing = self._thread.submit(lambda: self._prune(checkpoint.save(self._folder, contents, state)))

    def is_writing(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def end(self) -> Written:
        return self._ranks.run_on_main(self._result)

    def abandon(self) -> Written:
        assert self._writing is not None
        concurrent.futures.wait([self._writing], timeout=_ABANDON_SECONDS)
        if not self._writing.done():
            raise StorageError(_TOO_SLOW)
        return self._result()

    def _result(self) -> Written:
        assert self._writing is not None
        write, self._writing = self._writing, None
        return write.result()


class ShardingWriter(CheckpointWriter):
    """Each rank writes a part, in its thread; then the training thread of rank 0 completes the checkpoint."""

    _part: Future[dict[str, FileFacts]]
    _unfinished: UnfinishedCheckpoint | None = None  # on rank 0

    def deal(self) -> Deal:
        return Deal(self._ranks.rank, self._ranks.world_size)

    def begin(self, contents: Tensors, state: TrainState, prepare: Callable[[], None]) -> None:
        def open_folder() -> Path:
            prepare()
            self._unfinished = UnfinishedCheckpoint(self._folder, state)
            return self._unfinished.path

        try:
            path = self._ranks.run_on_main(open_folder)
        except StorageError as error:
            self._part = _failed(error)
            return
        part, parts = self._ranks.rank + 1, self._ranks.world_size
        self._part = self._thread.submit(lambda: write_part(path, contents, part, parts))

    def is_writing(self) -> bool:
        return not self._part.done()

    def end(self) -> Written:
        try:
            parts = self._ranks.gather_objects(self._ranks.run_on_all(self._part.result))
        except BaseException:
            self._discard()
            raise
        return self._ranks.run_on_main(lambda: self._complete(parts))

    def abandon(self) -> Written:
        concurrent.futures.wait([self._part], timeout=_ABANDON_SECONDS)
        if self._ranks.world_size == 1:
            if self._part.done():
                return self.end()
            raise StorageError(_TOO_SLOW)
        self._discard()
        raise StorageError("other processes had not reported their parts yet")

    def _complete(self, parts: list[dict[str, FileFacts]]) -> Written:
        assert self._unfinished is not None
        unfinished, self._unfinished = self._unfinished, None
        return self._prune(unfinished.complete(parts))

    def _discard(self) -> None:
        if self._unfinished is not None:
            self._unfinished.discard()
            self._unfinished = None


def choose_writer(config: CheckpointConfig, engine: Engine, parameters: int) -> type[CheckpointWriter]:
    """Choose who writes the checkpoints of a network with so many parameters, as ``checkpoint.sharded`` says."""
    if config.sharded == "auto":
        return ShardingWriter if engine.is_sharding and parameters >= _SHARDED_FROM else GatheringWriter
    return ShardingWriter if config.sharded == "yes" else GatheringWriter


def _failed(error: Exception) -> Future[T]:
    failed: Future[T] = Future()
    failed.set_exception(error)
    return failed
