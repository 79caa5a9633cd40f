"""``metrics.jsonl``, the truth about a run: one JSON object a line, appended, cut back on resume.

A training step has its line exactly once, whatever interrupted the run: a resume from step ``s`` first drops every
line after ``s``, because those steps are taken again. The CSV, W&B, the console and the report only mirror this file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.files import write_atomic


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement: of one optimizer step on the training data, or of one pass over another split.

    Attributes:
        step: optimizer steps done; the first step's record has 1.
        epoch: 0-based.
        split: ``train``, ``val``, ``test``.
        loss: mean over ``samples``; nan where it was not finite (null in the file: JSON has no other word).
        accuracy: fraction of ``samples``, in [0, 1].
        samples: images behind this record, over all processes.
        seconds: wall time that this step, or this pass, took. Times of steps add up to the training time, across
            interruptions too, and leave out evaluation and checkpoints.
        lr: learning rate that the step used; None outside training.
    """

    step: int
    epoch: int
    split: str
    loss: float
    accuracy: float
    samples: int
    seconds: float
    lr: float | None = None

    def to_line(self) -> bytes:
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
        return json.dumps(finite, allow_nan=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Record:
        """Raises ValueError when ``line`` is not one record; fields it does not know are passed over."""
        try:
            raw = json.loads(line)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(raw, dict):
            raise ValueError("it is not a JSON object")
        lr = raw.get("lr")
        return cls(
            step=_whole(raw, "step"),
            epoch=_whole(raw, "epoch"),
            split=str(raw.get("split", "")),
            loss=_number(raw, "loss"),
            accuracy=_number(raw, "accuracy"),
            samples=_whole(raw, "samples"),
            seconds=_number(raw, "seconds"),
            lr=None if lr is None else _number(raw, "lr"),
        )


class MetricsLog:
    """The open ``metrics.jsonl`` of a run; rank 0 alone has one.

    Args:
        path: the file; made when there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")

    def append(self, records: Sequence[Record]) -> None:
        """Add lines in one write. They survive the end of this process; for the end of the machine see sync."""
        self._file.write(b"".join(record.to_line() for record in records))
        self._file.flush()

    def sync(self) -> None:
        """Bring everything appended to the disk. Called before a checkpoint, which must not outlive its metrics."""
        os.fsync(self._file.fileno())

    def cut(self, step: int, evaluated: int | None = None) -> int:
        """Drop every record after ``step`` and whatever a kill left half-written at the end, atomically.

        Args:
            step: of the checkpoint that a resume goes on from.
            evaluated: epochs that were evaluated before it. A checkpoint at the very end of an epoch may have been
                saved before the evaluation there, which is then done again. None keeps all evaluations up to ``step``.

        Returns:
            The last step that any record had before; ``step`` when none came after it.

        Raises:
            UserError: a line that would be kept comes after one that cannot be read.
        """
        kept: list[bytes] = []
        last = step
        unreadable: tuple[int, ValueError] | None = None
        for number, line in _lines(self.path):
            try:
                record = Record.from_line(line)
            except ValueError as error:
                unreadable = unreadable or (number, error)
                continue
            last = max(last, record.step)
            done_again = evaluated is not None and record.split != "train" and record.epoch >= evaluated
            if record.step <= step and not done_again:
                if unreadable:
                    raise _not_a_record(self.path, *unreadable)
                kept.append(line)
        self._file.close()
        write_atomic(self.path, b"".join(kept))
        self._file = self.path.open("ab")
        return last

    def close(self) -> None:
        self.sync()
        self._file.close()


def read(path: Path) -> list[Record]:
    """The records of a ``metrics.jsonl``; none when there is no such file yet.

    The last line may be torn (the run is being written, or was killed) and is then left out.

    Raises:
        UserError: another line is not a record.
    """
    records: list[Record] = []
    unreadable: tuple[int, ValueError] | None = None
    for number, line in _lines(path):
        if unreadable:
            raise _not_a_record(path, *unreadable)
        try:
            records.append(Record.from_line(line))
        except ValueError as error:
            unreadable = (number, error)
    return records


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of each line that has its newline: without one it was never written whole."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield number, line


def _not_a_record(path: Path, number: int, error: ValueError) -> UserError:
    return UserError(f"{path} line {number} is not a metrics record ({error}); delete that line to go on without it")


def _whole(raw: dict[str, object], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"'{key}' is not a whole number from 0 on")
    return value


def _number(raw: dict[str, object], key: str) -> float:
    value = raw.get(key)
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e300:
        raise ValueError(f"'{key}' is not a number")
    return float(value)
