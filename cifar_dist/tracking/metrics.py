"""``metrics.jsonl``, the authoritative record of a run: one JSON object per line, appended, truncated on resume.

Each training step has exactly one line, whatever interrupted the run: a resume from step ``s`` first drops every line
after ``s``, because those steps are repeated. The CSV, W&B, the console and the report only mirror this file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cifar_dist.errors import UserError
from cifar_dist.files.atomic import naming, write_atomic
from cifar_dist.run_folder.folder import RunFolder, sum_beside
from cifar_dist.tracking.usage import Usage

if TYPE_CHECKING:
    from cifar_dist.checkpoint import TrainState  # which imports torch


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement: an optimizer step on the training data, or a pass over another split.

    Attributes:
        step: optimizer steps done; the first step's record has 1.
        epoch: 0-based.
        split: ``train``, ``val``, or that of the final evaluation, ``test``.
        loss: mean over ``samples``; nan if it was not finite (null in the file, because JSON has no nan).
        accuracy: fraction of ``samples``, in [0, 1].
        samples: images in this measurement, over all processes.
        seconds: wall time of this step or pass. The times of all steps add up to the training time, across
            interruptions, without evaluation and checkpoints.
        lr: learning rate that the step used; None outside training.
        grad_norm: of the step's gradients before they were clipped, nan if not finite; None where they are not clipped.
        usage: of an epoch, in its last record: the evaluation's, or the last step's where none follows; else None.
    """

    step: int
    epoch: int
    split: str
    loss: float
    accuracy: float
    samples: int
    seconds: float
    lr: float | None = None
    grad_norm: float | None = None
    usage: Usage | None = None

    def to_line(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__slots__}
        known = {key: value for key, value in fields.items() if value is not None}
        if self.usage is not None:
            known["usage"] = self.usage.to_json()
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in known.items()}
        return json.dumps(finite, allow_nan=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Record:
        """Parse a line; unknown fields are ignored.

        Raises:
            ValueError: ``line`` is not one record.
        """
        try:
            raw = json.loads(line)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(raw, dict):
            raise ValueError("it is not a JSON object")
        return cls(
            step=_count(raw, "step"),
            epoch=_count(raw, "epoch"),
            split=str(raw.get("split", "")),
            loss=_number(raw, "loss"),
            accuracy=_number(raw, "accuracy"),
            samples=_count(raw, "samples"),
            seconds=_number(raw, "seconds"),
            lr=None if raw.get("lr") is None else _number(raw, "lr"),
            grad_norm=_number(raw, "grad_norm") if "grad_norm" in raw else None,
            usage=Usage.from_json(raw["usage"]) if "usage" in raw else None,
        )


class MetricsLog:
    """The open ``metrics.jsonl`` of a run, on rank 0 only.

    Args:
        path: the file; created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sum = sum_beside(path)
        self._unwritten = b""
        self._open()

    def append(self, records: Sequence[Record]) -> None:
        """Append lines. They survive the end of this process; to survive a power cut, call sync.

        Raises:
            OSError: they cannot be written. The file is as before, and the next call writes them first.
        """
        self._unwritten += b"".join(record.to_line() for record in records)
        try:
            with naming(self.path):
                left = self._unwritten
                while left:  # a disk that fills up takes a part without an error
                    left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(self._unwritten)
        self._digest.update(self._unwritten)
        self._unwritten = b""

    def sync(self) -> None:
        """Flush all lines to the disk. Called before a checkpoint, which must not outlive its metrics.

        Raises:
            OSError: some lines cannot be written.
        """
        self.append([])
        with naming(self.path):
            os.fsync(self._file.fileno())
        write_atomic(self._sum, f"{self._digest.hexdigest()} {self._size}\n")

    def cut(self, step: int, evaluated: int | None = None) -> int:
        """Atomically drop every record after ``step``, and a line at the end that a kill left incomplete.

        Args:
            step: of the checkpoint from which to resume.
            evaluated: epochs that were evaluated before it. A checkpoint at the end of an epoch may have been saved
                before the evaluation there, which is then repeated, as the final one is in any case: a run that
                resumes was not finished. None keeps all evaluations up to ``step``.

        Returns:
            The last step of any record before the cut, at least ``step``.

        Raises:
            UserError: an unreadable line precedes one that would be kept.
            OSError: the file cannot be read or written.
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
            is_repeated = (
                evaluated is not None
                and record.split != "train"
                and (record.split != "val" or record.epoch >= evaluated)
            )
            if record.step <= step and not is_repeated:
                if unreadable:
                    raise _not_a_record(self.path, *unreadable)
                kept.append(line)
        write_atomic(self.path, b"".join(kept))
        self.reopen()
        return last

    def reopen(self) -> None:
        """Open the file again, after it was replaced."""
        self._file.close()
        self._open()
        self._sum.unlink(missing_ok=True)

    def close(self) -> None:
        """Flush all lines to the disk, and close the file even if that fails."""
        try:
            self.sync()
        finally:
            self._file.close()

    def _open(self) -> None:
        self._file = self.path.open("ab", buffering=0)
        content = self.path.read_bytes()
        self._size, self._digest = len(content), hashlib.sha256(content)


def difference(path: Path) -> Literal["", "shorter", "changed"]:
    """Compare the lines of the last :meth:`MetricsLog.sync` with what was written; empty if equal or unknown."""
    if (written := _read_sum(path)) is None:
        return ""
    checksum, size = written
    found = path.read_bytes()[:size] if path.is_file() else b""
    if len(found) < size:
        return "shorter"
    return "" if hashlib.sha256(found).hexdigest() == checksum else "changed"


def is_as_written(path: Path) -> bool:
    """Whether the ``metrics.jsonl`` of a run that has ended is what the run wrote; also where that is unknown."""
    if (written := _read_sum(path)) is None:
        return True
    content = path.read_bytes() if path.is_file() else b""
    return (hashlib.sha256(content).hexdigest(), len(content)) == written


def _read_sum(path: Path) -> tuple[str, int] | None:
    """Return the sha256 and the number of bytes of the last :meth:`MetricsLog.sync`; None if they are unknown."""
    try:
        checksum, size = sum_beside(path).read_text(encoding="utf-8").split()
        return checksum, int(size)
    except (FileNotFoundError, ValueError):
        return None


def read(path: Path) -> list[Record]:
    """Read the records of a ``metrics.jsonl``; none if the file does not exist yet.

    An incomplete last line (the run is writing it, or was killed) is skipped.

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


def evaluations(path: Path) -> list[Record]:
    """Read the records of the validation split.

    Raises:
        UserError: as :func:`read`.
    """
    return [record for record in read(path) if record.split == "val"]


def usage_of_final(path: Path, step: int) -> Usage | None:
    """Read what the final evaluation of a run after ``step`` used; None if it is unknown."""
    try:
        found = [record for record in read(path) if record.step == step and record.split not in ("train", "val")]
    except UserError:  # cutting the file refuses it, unless what is unreadable is repeated
        return None
    return found[-1].usage if found else None


def val_accuracies(run: RunFolder) -> dict[int, float]:
    """Read the validation accuracy of each step that was evaluated; empty if they cannot be read."""
    try:
        return {record.step: record.accuracy for record in evaluations(run.metrics)}
    except (UserError, OSError):
        return {}


def val_accuracy_of(state: TrainState, measured: Mapping[int, float]) -> float | None:
    """Return the validation accuracy of a checkpoint itself; None if it was not evaluated, or the record is lost.

    Its state has that of the last evaluation, which may be one of an earlier step.

    Args:
        state: of the checkpoint.
        measured: the :func:`val_accuracies` of its run.
    """
    return state.val_accuracy if state.is_best else measured.get(state.step)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line) of each complete line, which ends in a newline."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield number, line


def _not_a_record(path: Path, number: int, error: ValueError) -> UserError:
    return UserError(f"{path} line {number} is not a metrics record ({error}); delete that line to continue without it")


def _count(raw: dict[str, object], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"'{key}' is not an integer of at least 0")
    return value


def _number(raw: dict[str, object], key: str) -> float:
    value = raw.get(key)
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e300:
        raise ValueError(f"'{key}' is not a number")
    return float(value)
