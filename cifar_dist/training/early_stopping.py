"""Early stopping, computed from the evaluations in ``metrics.jsonl``: a resumed run has no other state to restore."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cifar_dist.config import TrainConfig
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import metrics
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
        best = "never" if self._best is None else f"best {abs(self._best):.4f} in epoch {self._best_epoch + 1}"
        return f"early stopping: no better {self._config.monitor} in {self.waited} evaluations, {best}"


def stopping_after(step: int, folder: RunFolder, setup: TrainingSetup) -> EarlyStopping:
    """Return early stopping as the settings of ``setup`` have it after the first ``step`` steps of a run."""
    records = metrics.evaluations(folder.metrics)
    turns = (one for one in records if one.step < step or (one.step == step and setup.is_turn(step)))
    return EarlyStopping(setup.config.train, turns)
