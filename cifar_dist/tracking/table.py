"""``metrics.csv``: the records of ``metrics.jsonl`` aggregated to one row per epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

from cifar_dist.files.atomic import write_atomic
from cifar_dist.tables import csv_text
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.usage import PHASES, Usage, total


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One epoch; nan for what was not measured.

    Attributes:
        epoch: 0-based, as in metrics.jsonl.
        step: optimizer steps done at its last record.
        train_loss, train_accuracy: mean over the epoch's samples, measured during each step.
        val_loss, val_accuracy: of the evaluation after it.
        lr: learning rate of its last step.
        seconds: training time, without evaluation.
        images_per_second: training throughput over all processes.
        test_loss, test_accuracy: of the final evaluation, after the last epoch.
        usage: of rank 0, evaluations included, and of an interrupted epoch only what followed the resume; None if no
            record has one.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float
    images_per_second: float
    test_loss: float
    test_accuracy: float
    usage: Usage | None

    def cells(self) -> dict[str, float]:
        """Return plain numbers by column: of the usage the wall time, memory, utilisation and share of each phase."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        if (used := self.usage) is None:
            return plain | dict.fromkeys(_USED, math.nan)
        facts = [used.seconds, used.peak_bytes, math.nan if used.utilisation is None else used.utilisation]
        shares = [used.shares.get(phase, 0.0) for phase in PHASES]
        return plain | dict(zip(_USED, [*facts, *shares], strict=True))


_PLAIN = [field.name for field in fields(EpochRow) if field.name != "usage"]
_USED = ["wall_seconds", "peak_bytes", "utilisation", *(f"{phase}_share" for phase in PHASES)]


@dataclass(slots=True)
class _Sums:
    step: int = 0
    samples: int = 0
    loss: float = 0.0
    correct: float = 0.0
    seconds: float = 0.0
    lr: float = math.nan
    val_loss: float = math.nan
    val_accuracy: float = math.nan
    test_loss: float = math.nan
    test_accuracy: float = math.nan
    usages: list[Usage] = field(default_factory=list)


class EpochTable:
    """Rows of epochs, updated record by record, so that the metrics of a long run are not reread at every epoch."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._epochs: dict[int, _Sums] = {}
        self.add(records)

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            sums = self._epochs.setdefault(record.epoch, _Sums())
            sums.step = max(sums.step, record.step)
            if record.usage is not None:
                sums.usages.append(record.usage)
            if record.split == "val":
                sums.val_loss, sums.val_accuracy = record.loss, record.accuracy
                continue
            if record.split != "train":
                sums.test_loss, sums.test_accuracy = record.loss, record.accuracy
                continue
            if not record.samples:  # in place of a record that was lost
                continue
            sums.samples += record.samples
            sums.loss += record.loss * record.samples
            sums.correct += record.accuracy * record.samples
            sums.seconds += record.seconds
            sums.lr = math.nan if record.lr is None else record.lr

    def row(self, epoch: int) -> EpochRow:
        """Return the row of an epoch.

        Raises:
            KeyError: the epoch has no records.
        """
        sums = self._epochs[epoch]
        return EpochRow(
            epoch=epoch,
            step=sums.step,
            train_loss=_ratio(sums.loss, sums.samples),
            train_accuracy=_ratio(sums.correct, sums.samples),
            val_loss=sums.val_loss,
            val_accuracy=sums.val_accuracy,
            lr=sums.lr,
            seconds=sums.seconds,
            images_per_second=_ratio(sums.samples, sums.seconds),
            test_loss=sums.test_loss,
            test_accuracy=sums.test_accuracy,
            usage=total(sums.usages),
        )

    def rows(self) -> list[EpochRow]:
        return [self.row(epoch) for epoch in sorted(self._epochs)]

    def write(self, path: Path) -> None:
        """Write the complete CSV atomically. A cell without a finite value is empty."""
        rows = (
            ["" if isinstance(value, float) and not math.isfinite(value) else value for value in row.cells().values()]
            for row in self.rows()
        )
        write_atomic(path, csv_text([*_PLAIN, *_USED], rows))


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
