"""What a mirror is: a destination to which the metrics of a run are copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.timeline import Status


class Mirror(Protocol):
    """A destination of one run's metrics.

    It is created in the main thread. The methods are called in this order from another one, and training does not wait
    for them.
    """

    def start(self, history: Sequence[Record]) -> None:
        """Start, also after each resume.

        Args:
            history: the records of the run so far, oldest first. An earlier process that was killed may have sent
                later steps; these are repeated.
        """

    def train_steps(self, records: Sequence[Record]) -> None:
        """Receive the training steps since the last call, oldest first."""

    def evaluation(self, record: Record, best: bool) -> None:
        """Receive a pass over another split; ``best``: whether it has the highest validation accuracy so far."""

    def close(self, status: Status | None) -> None:
        """Finish when the process stops training; None: the mirror failed and is dropped, and the run continues."""
