"""When a checkpoint is written, and what happens when it cannot be.

Training waits for a copy of the state only. A background thread writes it (``checkpoint.background``), on rank 0 or, in
parts, on all ranks (``checkpoint.sharded``), once the metrics up to its step are on the disk. There is one write at a
time, so checkpoints and links appear in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from cifar_dist.checkpoint import Tensors, TrainState
from cifar_dist.config import CheckpointConfig
from cifar_dist.distributed.host_copies import Deal
from cifar_dist.distributed.ranks import PendingValues, Ranks
from cifar_dist.errors import StorageError, in_one_line
from cifar_dist.tracking.tracker import AnyTracker
from cifar_dist.training.checkpoint_writers import CheckpointWriter, GatheringWriter, Written

ONCE_MORE = "one more attempt follows"


class CheckpointSaver:
    """Saves the checkpoints of a run. Every method but :meth:`is_due` and :meth:`close` is collective.

    Args:
        folder: the run's ``checkpoints``.
        config: ``checkpoint.*``.
        ranks: this process among all of the job.
        tracker: its metrics are flushed before a checkpoint, which must not outlive them.
        saved: the state of the checkpoint that the run resumes from.
        writer: how a checkpoint reaches the disk, see :func:`~cifar_dist.training.checkpoint_writers.choose_writer`.
        retry: steps until the first attempt after a failed one; each further wait is twice as long.
        longest_retry: the longest wait, in steps.
        last_step: of the run, after which it saves in any case.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        ranks: Ranks,
        tracker: AnyTracker,
        saved: TrainState,
        *,
        writer: type[CheckpointWriter] = GatheringWriter,
        retry: int,
        longest_retry: int,
        last_step: int,
    ) -> None:
        self._folder, self._config, self._ranks, self._tracker, self._saved = folder, config, ranks, tracker, saved
        self._writer = writer(folder, config.keep, ranks)
        self._first_wait, self._longest_wait = min(retry, longest_retry), longest_retry
        self._last_step = last_step
        self._wait = self._first_wait
        self._retry_at: int | None = None
        self._pending: TrainState | None = None  # is being written
        self._asked: PendingValues | None = None  # whether a process still writes it

    @property
    def best(self) -> float | None:
        """The highest validation accuracy of which a checkpoint was saved; exact after :meth:`wait`."""
        return self._saved.best_val_accuracy

    def is_due(self, step: int) -> bool:
        """Whether to save after this step, by ``checkpoint.every_steps`` or because the last attempt failed."""
        every = self._config.every_steps
        is_retried = self._retry_at is not None and step >= self._retry_at
        return is_retried or (every > 0 and step % every == 0)

    def save(self, tensors: Callable[[Deal], Tensors], state: TrainState, *, must: bool) -> None:
        """Copy a state and begin to write it, unless it is saved already.

        Args:
            tensors: returns its contents, as they are dealt to this process; nothing else changes them. Collective.
            state: the progress of the run.
            must: whether there is no later attempt; then it is complete when this returns.

        Raises:
            StorageError: as :meth:`wait`.
        """
        self.wait(state.step, then=ONCE_MORE if must else "")
        if replace(state, is_best=self._saved.is_best) == self._saved and self._saved.step > 0:
            return  # it may be the best, which a second save would not know
        contents = tensors(self._writer.deal())
        self._pending = state
        self._writer.begin(contents, state, self._tracker.sync)  # the metrics belong to this thread
        del contents  # the writer's thread alone keeps it, until it is written
        if must or not self._config.background:
            self.wait(state.step, must=must)

    def poll(self, step: int) -> None:
        """:meth:`wait` if the write under way had ended on all processes by the call before. Call it between steps.

        It asks the others and does not wait for their answers, which it reads in the next call.
        """
        if self._pending is None:
            return
        is_writing = torch.full((1,), float(self._writer.is_writing()), device=self._ranks.device)
        before, self._asked = self._asked, self._ranks.start_maximum(is_writing)
        if before is not None and not before.wait().item():
            self.wait(step)

    def wait(self, step: int, *, must: bool = False, then: str = "") -> None:
        """Wait until the write under way has ended, if there is one.

        If it failed, the run continues as ``checkpoint.on_error`` says, and saves again later.

        Args:
            step: optimizer steps done by now.
            must: whether there is no later attempt.
            then: what happens after a failure; by default, training continues.

        Raises:
            StorageError: it failed, and must not or ``checkpoint.on_error`` says stop.
        """
        if self._pending is None:
            return
        state, self._pending, self._asked = self._pending, None, None
        try:
            written = self._writer.end()
        except StorageError as error:
            if must or self._config.on_error == "stop":
                raise
            self._retry_at = max(state.step + self._wait, step + 1)
            self._wait = min(2 * self._wait, self._longest_wait)
            then = then or (ONCE_MORE if step >= self._last_step else self._later())
            self._tracker.warn(f"the checkpoint of step {state.step:,} could not be saved: {error}; {then}")
            return
        self._saved, self._retry_at, self._wait = state, None, self._first_wait
        self._report(state, written)

    def _later(self) -> str:
        """Say when the next attempt comes."""
        assert self._retry_at is not None
        again = f"after step {self._retry_at:,} or at its end, at the latest"
        return f"training continues, and saves again {again if self._retry_at < self._last_step else 'at its end'}"

    def close(self) -> None:
        """Let the write under way end in a job that has failed, and report it."""
        if self._pending is None or not self._ranks.is_main:
            return
        try:
            written = self._writer.abandon()
        except Exception as error:
            cause = in_one_line(error, self._folder)
            self._tracker.warn(f"the checkpoint of step {self._pending.step:,} could not be saved: {cause}")
        else:
            self._report(self._pending, written)

    def _report(self, state: TrainState, written: Written) -> None:
        if written.problem:
            self._tracker.warn(written.problem)
        self._tracker.checkpoint(state.step, written.path)
