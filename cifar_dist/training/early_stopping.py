"""Early stopping, computed from the evaluations in ``metrics.jsonl``: a resumed run has no other state to restore."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from cifar_dist.config import TrainConfig
from cifar_dist.formatting import counted
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import metrics, timeline
from cifar_dist.tracking.metrics import Record
from cifar_dist.training.setup import TrainingSetup


class EarlyStopping:
    """Counts evaluations without an improvement, as Keras' EarlyStopping does: Prechelt, *Early Stopping*, 1998.

    Args:
        config: ``patience``, ``monitor`` and ``min_delta``.
        history: the run's records so far; only those of the validation split count.

    Attributes:
        waited: evaluations in a row without an improvement.
    """

    def __init__(self, config: TrainConfig, history: Iterable[Record] = ()) -> None:
        self._config = config
        self._best: float | None = None
        self._best_epoch = 0
        self.waited = 0
        for record in history:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count an evaluation; a loss that is not finite is not an improvement."""
        if record.split != "val":
            return
        config = self._config
        value = record.accuracy if config.monitor == "val_accuracy" else -record.loss
        if math.isfinite(value) and (self._best is None or value > self._best + config.min_delta):
            self._best, self._best_epoch, self.waited = value, record.epoch, 0
        else:
            self.waited += 1

    def is_exhausted(self) -> bool:
        """Whether the run is complete."""
        return 0 < self._config.patience <= self.waited

    def __str__(self) -> str:
        monitor, delta, count = self._config.monitor, self._config.min_delta, counted(self.waited, "evaluation")
        if self._best is None:
            return f"early stopping: no better {monitor} in {count}, never"
        since = f"{abs(self._best):.4f} in epoch {self._best_epoch + 1}"
        if delta:  # a later one may be better, by less than that
            return f"early stopping: no {monitor} better by more than {delta:g} in {count} since {since}"
        return f"early stopping: no better {monitor} in {count}, best {since}"


class End(NamedTuple):
    """An evaluation after which a run is complete by early stopping.

    Attributes:
        step: optimizer steps done.
        waited: evaluations in a row without an improvement.
        reason: in words.
    """

    step: int
    waited: int
    reason: str


def ends_by_patience(step: int, folder: RunFolder, setup: TrainingSetup) -> list[End]:
    """List where the settings of ``setup`` would have ended a run within its first ``step`` steps, the earliest first.

    A later improvement does not undo an end. A branch cannot have ended before it began. An evaluation that was made
    only because the run ended there does not count.
    """
    events = timeline.read(folder.timeline)
    begun = max((event.step for event in events if event.kind == "branched"), default=0)
    stopping, ends = EarlyStopping(setup.config.train), []
    for record in metrics.evaluations(folder.metrics):
        if record.step > step or (record.step == step and not setup.is_turn(step)):
            continue
        stopping.add(record)
        if stopping.is_exhausted() and record.step >= begun:
            ends.append(End(record.step, stopping.waited, str(stopping)))
    return ends
