"""List all runs below a folder, with their progress and results, from the run folders alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cifar_dist import __version__
from cifar_dist.config.saved import CONFIG_NAME
from cifar_dist.errors import UserError
from cifar_dist.formatting import counted, list_some, size
from cifar_dist.report.results import Result, State, data_names, files_of_report, lost_metrics, read_result, read_state
from cifar_dist.run_folder import RunFolder
from cifar_dist.tables import csv_text, markdown
from cifar_dist.terminal.notice import print_notes
from cifar_dist.tracking import timeline
from cifar_dist.tracking.begun import has_begun


@dataclass(frozen=True)
class ListedRun:
    """A run as a line of the list.

    Attributes:
        run: its folder.
        state: ``damaged`` if its files cannot be read.
        result: its results; None if it is damaged.
        problem: what is damaged or lost; empty if nothing is.
        bytes: size on the disk.
        written: time of its last progress, seconds since 1970.
        version: of its files before they were read, see :func:`version`; empty if the state depends on more than these.
    """

    run: RunFolder
    state: State | Literal["damaged"]
    result: Result | None
    problem: str
    bytes: int
    written: float
    version: str

    @property
    def val(self) -> float | None:
        return self.result.val_accuracy if self.result else None

    @property
    def test(self) -> float | None:
        return self.result.test_accuracy if self.result else None

    @property
    def cells(self) -> dict[str, str]:
        """The cells of a table for people, by the name of the column; a damaged run lacks some."""
        return {
            "state": self.state,
            **(self.result.cells if self.result else {}),
            "on disk": size(self.bytes),
            "written (UTC)": timeline.utc(self.written)[:16].replace("T", " "),
            "origin": self.result.origin if self.result else "",
        }


def find_runs(folder: Path, *, show: bool = True) -> list[RunFolder]:
    """Return the run folders in ``folder`` at any depth, or ``folder`` itself, sorted by path.

    A link to a run counts as a run, unless that run is below ``folder`` too.

    Args:
        folder: the folder.
        show: name the folders that this user may not read on stderr.

    Raises:
        UserError: the folder does not exist, or contains no run.
    """
    if not folder.is_dir() and (run := RunFolder(Path("runs", folder))).exists():
        return [run]
    if not folder.is_dir():
        raise UserError(f"folder '{folder}' does not exist; train first, or name another FOLDER")
    forbidden: list[str] = []
    below = list(_below(folder, forbidden))
    own = {path.resolve() for path in below if not path.is_symlink()}
    found = sorted(path for path in below if not path.is_symlink() or path.resolve() not in own)
    denied = f"permission denied for {counted(len(forbidden), 'folder')}: {list_some(sorted(forbidden))}"
    if not found and forbidden:
        raise UserError(f"{folder} contains no run that can be read: {denied}; ask their owner, or name another FOLDER")
    if not found:
        raise UserError(f"{folder} contains no run yet; train first, or name another FOLDER")
    if forbidden and show:
        print_notes([f"runs may be missing here: {denied}"])
    return list(map(RunFolder, found))


def describe(run: RunFolder) -> ListedRun:
    """Read one run, damaged or not."""
    result, problem, before = None, "", version(run)
    state: State | Literal["damaged"] = "damaged"
    try:
        result = read_result(run)
        state = read_state(run)
        problem = lost_metrics(run, result.step, state)
    except UserError as error:
        problem = str(error)
    except OSError as error:  # a folder in place of a file, or another user's run
        problem = f"{error.filename or run.path} cannot be read: {error.strerror or error}"
    depends_on_more = state in ("training", "damaged")  # the lock, permissions
    on_disk = disk_bytes(run.path.resolve())  # of the run that a link leads to
    return ListedRun(run, state, result, problem, on_disk, written(run), "" if depends_on_more else before)


def version(run: RunFolder) -> str:
    """Return a hash that changes with the files of a run that :func:`describe` reads, without reading them."""
    files = [run.config, run.manifest, run.environment, run.metrics, run.metrics_sum, run.timeline, run.final]
    files.append(run.report)  # to which the page of runs links
    facts: list[tuple[int, ...]] = []
    with contextlib.suppress(OSError):  # of a folder that cannot be read
        files += [evaluation.summary for evaluation in run.evaluation_folders()]
    for file in files:
        try:
            status = file.stat()
        except OSError:
            facts.append(())
        else:
            facts.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr((__version__, os.path.abspath(run.path), facts)).encode()).hexdigest()[:32]


def written(run: RunFolder) -> float:
    """Return the time of the last progress of a run, seconds since 1970."""
    times = []
    for file in (run.metrics, run.timeline, run.config):
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


_RUNS = Path("runs")
_END = 200  # bytes of a report, with what it says of its files
_COLUMNS = ("state", "model", "epochs", "val %", "test %", "TTA", "parameters", "time", "on disk", "written (UTC)")
_NUMBERS = ("epochs", "val %", "test %", "parameters", "time", "on disk")
_DISPENSABLE = ("origin", "on disk", "parameters", "written (UTC)", "TTA", "time", "model", "data")


def table(entries: Sequence[ListedRun], width: int | None = None) -> str:
    """Format a Markdown table with one run per line, named as ``cifar-dist report`` and other commands accept it.

    Args:
        entries: the runs.
        width: of a terminal; None for no limit.
    """
    names = data_names([entry.result for entry in entries])
    cells = [{**entry.cells, "data": name} for entry, name in zip(entries, names, strict=True)]
    shown = {"data": len({*names} - {""}) > 1}  # where runs differ in it
    shown["origin"] = any(of_run["origin"] for of_run in cells)
    columns = [*_COLUMNS, *(column for column, is_shown in shown.items() if is_shown)]
    rows = [
        [_name(entry.run.path), *(of_run.get(column, "") for column in columns)]
        for entry, of_run in zip(entries, cells, strict=True)
    ]
    return markdown(["run", *columns], rows, _NUMBERS, width=width, dispensable=_DISPENSABLE)


def to_csv(entries: Sequence[ListedRun]) -> str:
    """Format a CSV for programs: fractions, seconds, bytes; empty if unknown."""
    figures = ["train_accuracy", "val_accuracy", "test_accuracy", "eval_split", "tta", "seconds"]
    head = ["run", "state", "model", "dataset", "fingerprint", "parameters", "epochs", "epochs_asked"]
    rows = []
    for entry in entries:
        cells: list[object] = [None] * 12
        if result := entry.result:
            config, facts = result.config, result.facts
            cells = [config.model.name, facts.dataset, facts.fingerprint, result.parameters]
            cells += [result.epochs, config.train.epochs]
            cells += [result.train_accuracy, entry.val, entry.test, result.eval_split, result.tta, result.seconds]
        origin = entry.result.origin if entry.result else None
        rows.append([entry.run.path, entry.state, *cells, entry.bytes, timeline.utc(entry.written), origin])
    return csv_text([*head, *figures, "bytes", "written", "origin"], rows)


def has_outdated_report(run: RunFolder) -> bool:
    """Whether the report of a run is missing, or something has happened in the run since it was drawn."""
    try:
        with run.report.open("rb") as file:
            file.seek(-min(_END, file.seek(0, os.SEEK_END)), os.SEEK_END)
            drawn = file.read()
    except OSError:
        return has_begun(run)
    try:
        return files_of_report(run).encode() not in drawn
    except OSError:  # of a folder that cannot be read, which drawing it reports
        return True


def disk_bytes(path: Path) -> int:
    """Return the size of a file, or of all files below a folder, without links."""
    if path.is_symlink() or not path.is_dir():
        return _length(path)
    return sum(_length(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)


def _below(folder: Path, forbidden: list[str]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        if isinstance(error, PermissionError) and os.path.basename(error.filename) != "lost+found":
            forbidden.append(error.filename)

    for place, folders, files in os.walk(folder, onerror=note):
        if CONFIG_NAME in files and (run := RunFolder(Path(place))).exists():
            yield run.path
            if run.is_of_this_program():
                folders.clear()  # runs do not contain runs
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in folders):
            if path.is_symlink() and RunFolder(path).exists():
                yield path


def _length(path: Path) -> int:
    try:
        return 0 if path.is_symlink() else path.stat().st_size
    except OSError:  # deleted in the meantime: the run is being written
        return 0


def _name(path: Path) -> str:
    """Name a run as :func:`find_run` finds it: below ``runs`` without that, elsewhere by its path."""
    if _RUNS in path.parents:
        return str(path.relative_to(_RUNS))
    return str(path) if "/" in str(path) else f"./{path}"
