"""List all runs below a folder, with their progress and results, from the run folders alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.config.saved import CONFIG_NAME
from cifar_dist.errors import UserError
from cifar_dist.formatting import csv_text, duration, markdown, percent_cell, size
from cifar_dist.report.results import Result, read_result
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline


@dataclass(frozen=True)
class Entry:
    """A run.

    Attributes:
        path: its folder.
        state: ``finished``, ``training``, ``stopped``, ``failed``, ``killed``, ``not begun`` or ``damaged``.
        result: its results; None if it is damaged.
        problem: what is damaged or lost; empty if nothing is.
        bytes: size on the disk.
        written: time of its last progress, seconds since 1970.
    """

    path: Path
    state: str
    result: Result | None
    problem: str
    bytes: int
    written: float

    @property
    def val(self) -> float | None:
        return self.result.val_accuracy if self.result else None

    @property
    def test(self) -> float | None:
        return self.result.test_accuracy if self.result else None


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in ``folder`` at any depth, or ``folder`` itself, sorted by path.

    A link to a run counts as a run, unless that run is below ``folder`` too.

    Raises:
        UserError: the folder does not exist, or contains no run.
    """
    if not folder.is_dir() and RunFolder(run := Path("runs", folder)).exists():
        return [run]
    if not folder.is_dir():
        raise UserError(f"folder '{folder}' does not exist; train first, or name another FOLDER")
    below = list(_below(folder))
    own = {path.resolve() for path in below if not path.is_symlink()}
    found = sorted(path for path in below if not path.is_symlink() or path.resolve() not in own)
    if not found:
        raise UserError(f"{folder} contains no run yet; train first, or name another FOLDER")
    return found


def describe(path: Path) -> Entry:
    """Read one run, damaged or not."""
    result, problem = None, ""
    try:
        result = read_result(path)
        state = _state(RunFolder(path))
        if state == "finished" and not result.epochs:
            problem = f"{RunFolder(path).metrics} has lost the steps of a finished run; restore it"
    except UserError as error:
        state, problem = "damaged", str(error)
    return Entry(path, state, result, problem, disk_bytes(path), _written(path))


_DISPENSABLE = ("on disk", "parameters", "last written", "TTA", "time", "model")


def table(entries: Sequence[Entry], folder: Path, width: int | None = None) -> str:
    """Format a Markdown table with one run per line, named as ``cifar-dist report`` and other commands accept it.

    Args:
        entries: the runs.
        folder: their folder, which is not printed.
        width: of a terminal; None for no limit.
    """
    numbers = ["epochs", "val %", "test %", "parameters", "time", "on disk"]
    rows = []
    for entry in entries:
        result = entry.result
        rows.append(
            [
                _name(entry.path, folder),
                entry.state,
                result.config.model.name if result else "",
                result.progress if result else "",
                percent_cell(entry.val),
                percent_cell(entry.test),
                result.tta if result else "",
                f"{result.parameters:,}" if result and result.parameters is not None else "",
                duration(result.seconds) if result and result.epochs else "",
                size(entry.bytes),
                timeline.utc(entry.written)[:16].replace("T", " "),
                result.origin if result else "",
            ]
        )
    head = ["run", "state", "model", "epochs", "val %", "test %", "TTA", "parameters", "time", "on disk"]
    if not any(row[-1] for row in rows):
        rows = [row[:-1] for row in rows]
    head = [*head, "last written", "origin"][: len(rows[0])]
    return markdown(head, rows, numbers, width=width, dispensable=_DISPENSABLE)


def to_csv(entries: Sequence[Entry]) -> str:
    """Format a CSV for programs: fractions, seconds, bytes; empty if unknown."""
    figures = ["train_accuracy", "val_accuracy", "test_accuracy", "tta", "seconds"]
    head = ["run", "state", "model", "dataset", "parameters", "epochs", "epochs_asked", *figures]
    rows = []
    for entry in entries:
        cells: list[object] = [None] * 10
        if result := entry.result:
            config, dataset = result.config, result.facts.get("dataset")
            cells = [config.model.name, dataset, result.parameters, result.epochs, config.train.epochs]
            cells += [result.train_accuracy, entry.val, entry.test, result.tta, result.seconds]
        origin = entry.result.origin if entry.result else None
        rows.append([entry.path, entry.state, *cells, entry.bytes, timeline.utc(entry.written), origin])
    return csv_text([*head, "bytes", "written", "origin"], rows)


def has_outdated_report(run: Path) -> bool:
    """Whether the report of a run is missing or older than what happened last in the run."""
    folder = RunFolder(run)
    try:
        return folder.report.stat().st_mtime_ns < max(
            path.stat().st_mtime_ns for path in (folder.timeline, folder.metrics)
        )
    except OSError:
        return folder.has_begun()


def disk_bytes(path: Path) -> int:
    """Return the size of a file, or of all files below a folder, without links."""
    if path.is_symlink() or not path.is_dir():
        return _length(path)
    return sum(_length(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        if CONFIG_NAME in files and (run := RunFolder(Path(place))).exists():
            yield run.path
            if run.is_of_this_program():
                folders.clear()  # runs do not contain runs
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in folders):
            if path.is_symlink() and RunFolder(path).exists():
                yield path


def _state(folder: RunFolder) -> str:
    if folder.is_finished():
        return "finished"
    events = timeline.read(folder.timeline)
    event = timeline.last_of_a_process(events)
    last = event.kind if event else ""
    if last in ("started", "resumed"):
        return "training" if folder.in_use() else "killed"
    ends = {"": "not begun", "interrupted": "stopped"}
    return ends.get(last, last)


def _written(path: Path) -> float:
    folder, times = RunFolder(path), []
    for file in (folder.metrics, folder.timeline, folder.config):
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def _length(path: Path) -> int:
    try:
        return 0 if path.is_symlink() else path.stat().st_size
    except OSError:  # deleted in the meantime: the run is being written
        return 0


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if folder in path.parents else str(path)
