"""A run of two epochs of three steps, as a trainer would report it."""

from __future__ import annotations

import math
from pathlib import Path

from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import MetricsLog, Record

STEPS_PER_EPOCH = 3
FACTS = RunFacts(
    model="tiny-cnn",
    parameters=1234,
    dataset="digits",
    fingerprint="0123abcd",
    classes=10,
    image_shape=(8, 8, 1),
    train_samples=30,
    val_samples=12,
    processes=2,
    wrapper="DDP",
    device="cpu",
    precision="fp32",
    steps_per_epoch=STEPS_PER_EPOCH,
    epochs=2,
)


def train(step: int, *, loss: float = 1.5, samples: int = 10) -> Record:
    """The record of optimizer step ``step``, which is 1-based."""
    return Record(step, (step - 1) // STEPS_PER_EPOCH, "train", loss, 0.5, samples, 0.25, 0.1)


def final(epoch: int, *, accuracy: float = 0.875) -> Record:
    """The record of the final evaluation, after the last epoch."""
    return Record((epoch + 1) * STEPS_PER_EPOCH, epoch, "test", 0.25, accuracy, 20, 0.5)


def val(epoch: int, *, accuracy: float = 0.75) -> Record:
    """The evaluation after epoch ``epoch``."""
    return Record((epoch + 1) * STEPS_PER_EPOCH, epoch, "val", 0.5, accuracy, 12, 0.125)


def write_metrics(path: Path, records: list[Record]) -> None:
    log = MetricsLog(path)
    log.append(records)
    log.close()


def as_written(record: Record) -> tuple[object, ...]:
    """Return a record as the file keeps it, comparable: infinity has no notation there, and nan differs from itself."""
    values = (record.loss, record.accuracy, record.seconds, record.lr)
    finite = tuple(v if v is not None and math.isfinite(v) else None for v in values)
    return record.step, record.epoch, record.split, record.samples, *finite
