"""Find the records that ``metrics.jsonl`` has lost, and put records without a loss in their place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from cifar_dist.errors import UserError
from cifar_dist.files.atomic import copy_atomic, write_atomic
from cifar_dist.files.folders import free_name
from cifar_dist.tracking.metrics import Record, difference, read

_RESTORE: Final = "restore the file if you can"


def restore_lost(path: Path, step: int, steps_per_epoch: int, val_accuracy: float | None) -> str:
    """Ensure that ``path`` has each training step up to ``step`` once.

    Losses cannot be recovered. A lost step gets a record without loss, accuracy and samples, so that the file still has
    one line per step; what was left of the file is kept beside it.

    Args:
        path: a run's ``metrics.jsonl``, cut to its checkpoint.
        step: of the checkpoint.
        steps_per_epoch: of the run.
        val_accuracy: the last one that the checkpoint knows; None before the first evaluation.

    Returns:
        One line if steps were lost, else nothing.

    Raises:
        UserError: a step occurs twice, or the file is that of another run.
        OSError: the file cannot be read or written.
    """
    records = read(path)
    measured = next((record for record in reversed(records) if record.split == "val"), None)
    unknown = ""
    if measured is not None and val_accuracy is not None and measured.accuracy != val_accuracy:
        if measured.epoch + 1 >= step // steps_per_epoch:  # no evaluation can have followed
            raise UserError(
                f"{path} is not that of this run: its last validation accuracy is {measured.accuracy:.6g}, the "
                f"checkpoint says {val_accuracy:.6g}; restore it, or delete it to resume without the metrics so far"
            )
        unknown = f"{path} has lost the last validation accuracy, {val_accuracy:.6g}; {_RESTORE}"
    steps = [record.step for record in records if record.split == "train"]
    if len(set(steps)) != len(steps):
        twice = next(one for one, count in Counter(steps).items() if count > 1)
        raise UserError(f"{path} has step {twice} twice; restore it, or delete the lines that do not belong to it")
    lost = sorted(set(range(1, step + 1)) - set(steps))
    if not lost:
        return unknown
    kept = ""
    if records:
        aside = free_name(path.with_name(f"{path.name}.damaged"))
        copy_atomic(path, aside)
        kept = f"; what was left is kept in {aside}"
    empty = [Record(one, (one - 1) // steps_per_epoch, "train", math.nan, math.nan, 0, 0.0) for one in lost]
    both = sorted([*records, *empty], key=lambda record: (record.step, record.split != "train"))
    write_atomic(path, b"".join(record.to_line() for record in both))
    what = _describe(lost, "record", "of step")
    return f"{path} has lost {what}; empty ones are in their place{kept}"


def describe_lost_evaluations(path: Path, step: int, due: Collection[int]) -> str:
    """Say in one line what a file has lost besides records of training steps; empty if nothing.

    Args:
        path: a run's ``metrics.jsonl``, before it is cut to its checkpoint.
        step: of the checkpoint.
        due: the epochs, from 0, after which the run was evaluated before that, as its settings are now.
    """
    if not (change := difference(path)):
        return ""  # nothing is lost: what is missing was not due by the settings of that time
    try:
        records = read(path)
    except UserError:
        return ""  # cutting the file refuses it, unless what is unreadable is repeated
    if lost := sorted({*due} - {record.epoch for record in records if record.split == "val"}):
        what = _describe([epoch + 1 for epoch in lost], "evaluation", "after epoch")
        return f"{path} has lost {what}, not counted by train.patience; {_RESTORE}"
    has_all_steps = {*range(1, step + 1)} <= {record.step for record in records if record.split == "train"}
    return f"{path} has lost a record; {_RESTORE}" if change == "shorter" and has_all_steps else ""


def _describe(numbers: Sequence[int], what: str, where: str) -> str:
    """``the record of step 3``, ``the records of steps 1 to 40`` or ``17 records of steps 3 to 40``."""
    if len(numbers) == 1:
        return f"the {what} {where} {numbers[0]:,}"
    are_consecutive = numbers[-1] - numbers[0] + 1 == len(numbers)
    count = "the" if are_consecutive else f"{len(numbers):,}"
    return f"{count} {what}s {where}s {numbers[0]:,} to {numbers[-1]:,}"
