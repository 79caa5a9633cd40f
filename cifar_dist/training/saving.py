"""When a checkpoint is written, and what happens when it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cifar_dist import checkpoint
from cifar_dist.checkpoint import Tensors, TrainState
from cifar_dist.config import CheckpointConfig
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.errors import StorageError
from cifar_dist.tracking.tracker import AnyTracker


class CheckpointSaver:
    """Saves the checkpoints of a run; rank 0 writes. Every method is collective.

    Args:
        folder: the run's ``checkpoints``.
        config: ``checkpoint.*``.
        ranks: this process among all of the job.
        tracker: its metrics are flushed before a checkpoint, which must not outlive them.
        saved: the state of the checkpoint that the run resumes from.
        retry: steps until the first attempt after a failed one; each further wait is twice as long.
        longest_retry: the longest wait, in steps.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        ranks: Ranks,
        tracker: AnyTracker,
        saved: TrainState,
        *,
        retry: int,
        longest_retry: int,
    ) -> None:
        self._folder, self._config, self._ranks, self._tracker, self._saved = folder, config, ranks, tracker, saved
        self._first_wait, self._longest_wait = min(retry, longest_retry), longest_retry
        self._wait = self._first_wait
        self._retry_at: int | None = None

    def is_due(self, step: int) -> bool:
        """Whether to save after this step, by ``checkpoint.every_steps`` or because the last attempt failed."""
        every = self._config.every_steps
        return step == self._retry_at or (every > 0 and step % every == 0)

    def save(self, tensors: Callable[[], Tensors], state: TrainState, *, must: bool) -> bool:
        """Write a checkpoint unless this state is saved already.

        Args:
            tensors: returns its contents. Collective.
            state: the progress of the run.
            must: whether there is no later attempt.

        Returns:
            Whether it is saved. If not, the run continues as ``checkpoint.on_error`` says, and tries again later.

        Raises:
            StorageError: it cannot be written, and must be or ``checkpoint.on_error`` says stop.
        """
        if replace(state, is_best=self._saved.is_best) == self._saved and self._saved.step > 0:
            return True  # it may be the best, which a second save would not know
        contents = tensors()
        try:
            path = self._ranks.run_on_main(lambda: self._write(contents, state))
        except StorageError as error:
            if must or self._config.on_error == "stop":
                raise
            self._retry_at = state.step + self._wait
            self._wait = min(2 * self._wait, self._longest_wait)
            self._tracker.warn(
                f"the checkpoint of step {state.step:,} could not be saved: {error}; training continues, and saves "
                f"again after step {self._retry_at:,} at the latest"
            )
            return False
        self._saved, self._retry_at, self._wait = state, None, self._first_wait
        self._tracker.checkpoint(state.step, path)
        return True

    def _write(self, tensors: Tensors, state: TrainState) -> Path:
        self._tracker.sync()
        path = checkpoint.save(self._folder, tensors, state)
        try:
            checkpoint.prune(self._folder, self._config.keep)
        except OSError as error:  # the next save tries again
            self._tracker.warn(f"an old checkpoint cannot be deleted: {StorageError.of(error, self._folder)}")
        return path
