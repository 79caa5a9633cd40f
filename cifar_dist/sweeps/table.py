"""A sweep's results as one table, from the run folders alone."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cifar_dist.config.changes import differences, short_key
from cifar_dist.config.settings import settings_of
from cifar_dist.formatting import duration, percent_cell
from cifar_dist.report.results import (
    Result,
    State,
    data_names,
    lost_metrics,
    name_final,
    read_result,
    read_state,
    with_split,
)
from cifar_dist.report.sweep_rows import Compared, draw_comparison
from cifar_dist.sweeps.sweep import Row, Run, Sweep
from cifar_dist.tables import csv_text, markdown
from cifar_dist.tracking.begun import has_begun


@dataclass(frozen=True)
class Spread:
    """One or more numbers, their mean and their sample standard deviation."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of those that are known; None when none is."""
        known = tuple(value for value in values if value is not None)
        return cls(known) if known else None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """With divisor n - 1; None for a single one."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Line:
    """A row's figures, over its finished runs; fractions and seconds.

    Attributes:
        name: of the row.
        settings: its value of each setting that varies, as TOML writes it.
        parameters: of its network.
        train, val, test: accuracies; train is the mean over the steps of the last epoch, test the evaluation that ended
            the run.
        eval_split: the split of that evaluation; empty if there was none.
        seconds: of training.
        finished: the results that these figures are of.
        runs: how far it is: ``3 of 3``, ``1 of 3, epoch 4 of 34, failed at epoch 2 of 34``, ``not run yet``; and how
            many of its folders do not count, as they are damaged or of runs with other settings, data or plug-ins.
    """

    name: str
    settings: tuple[str, ...]
    parameters: int | None
    train: Spread | None
    val: Spread | None
    test: Spread | None
    eval_split: str
    seconds: Spread | None
    finished: tuple[Result, ...]
    runs: str


class Table:
    """All rows of a sweep, read now.

    Raises:
        UserError: a run folder that is damaged.
    """

    def __init__(self, sweep: Sweep) -> None:
        differ = differences([settings_of(row.runs[0].config) for row in sweep.rows])
        self.keys = list(differ)
        settings: Iterable[tuple[str, ...]] = zip(*differ.values(), strict=True) if differ else [()] * len(sweep.rows)
        self.lines = [_line(row, values) for row, values in zip(sweep.rows, settings, strict=True)]
        self.best = _best([line for line in self.lines if line.val or line.test])

    def markdown(self, width: int | None = None) -> str:
        """For a reader: percent, the best row bold; ``width`` of a terminal, None for no limit."""
        numbers = ["parameters", "train %", "val %", "test %", "time"]
        rows = []
        for line in self.lines:
            cells = [
                line.name,
                *line.settings,
                f"{line.parameters:,}" if line.parameters is not None else "",
                *(_shown(spread, percent_cell) for spread in (line.train, line.val)),
                with_split(_shown(line.test, percent_cell), line.eval_split),
                _shown(line.seconds, duration, spread=False),
                line.runs,
            ]
            rows.append([f"**{cell}**" if cell and line in self.best else cell for cell in cells])
        settings = [short_key(key, self.keys) for key in self.keys]
        dispensable = ["time", "parameters", "train %", *reversed(settings)]  # the name of a row says them too
        return markdown(["row", *settings, *numbers, "runs"], rows, numbers, width=width, dispensable=dispensable)

    def draw(self, title: str, path: Path) -> Path:
        """Write the accuracies as a picture to ``path``; returns it."""
        rows = []
        for line in self.lines:
            beside = [f"{line.eval_split} {_shown(line.test, percent_cell)} %"] if line.test else []
            beside += [f"{line.parameters / 1e6:.2f} M"] if line.parameters is not None else []
            val, test = (spread.values if spread else () for spread in (line.val, line.test))
            rows.append(Compared(line.name, val, test, ", ".join(beside)))
        return draw_comparison(title, rows, path, name_final(line.eval_split for line in self.lines))

    def csv(self) -> str:
        """For a program: fractions and seconds, each with its deviation and its number of runs."""
        figures = ("train_accuracy", "val_accuracy", "test_accuracy", "seconds")
        columns = [f"{figure}{part}" for figure in figures for part in ("", "_sd", "_n")]
        rows = []
        for line in self.lines:
            cells: list[object] = []
            for spread in (line.train, line.val, line.test, line.seconds):
                cells += [spread.mean, spread.deviation, spread.n] if spread else [None, None, 0]
            rows.append([line.name, *line.settings, line.parameters, *cells, line.eval_split, line.runs])
        return csv_text(["row", *self.keys, "parameters", *columns, "eval_split", "runs"], rows)


def _best(lines: Sequence[Line]) -> list[Line]:
    """Return the rows of the highest accuracy: on validation data, as a choice should be, if every row has that.

    None if the rows are on different data, or have no accuracy on one split.
    """
    finished = [result for line in lines for result in line.finished]
    val = [line.val.mean for line in lines if line.val]
    test = [line.test.mean for line in lines if line.test]
    means = val if len(val) == len(lines) else test
    splits = {result.final.split for result in finished if result.final} if means is test else {"val"}
    if len(means) < len(lines) or len(splits) > 1 or len(set(data_names(finished))) > 1:
        return []
    best = max(means, default=None)
    return [line for line, mean in zip(lines, means, strict=True) if mean == best]


def _line(row: Row, settings: tuple[str, ...]) -> Line:
    changes = [_change(run) for run in row.runs]
    others = [change for change in changes if change]
    own = [run for run, change in zip(row.runs, changes, strict=True) if not change and run.folder.exists()]
    read = [(run.folder, read_result(run.folder), _state(run)) for run in own]
    results = [
        (result, state)
        for folder, result, state in read
        if state != "finished" or not lost_metrics(folder, result.step, state)
    ]
    others += ["lost metrics"] * (len(read) - len(results))
    done = [result for result, state in results if state == "finished"]
    return Line(
        name=row.name,
        settings=settings,
        parameters=next((result.parameters for result, _ in results if result.parameters is not None), None),
        train=Spread.of(result.train_accuracy for result in done),
        val=Spread.of(result.val_accuracy for result in done),
        test=Spread.of(result.test_accuracy for result in done),
        eval_split=next((result.eval_split for result in done if result.final), ""),
        seconds=Spread.of(result.seconds for result in done),
        finished=tuple(done),
        runs=_progress(len(row.runs), len(done), [one for one in results if one[1] != "finished"], others),
    )


def _state(run: Run) -> State:
    """Name the state of a run, which is incomplete without the evaluation that the sweep asks for."""
    if run.is_finished():
        return "finished"
    state = read_state(run.folder)
    return "incomplete" if state == "finished" else state


def _change(run: Run) -> str:
    """Name what makes the folder of a run another run's, or useless; empty for nothing."""
    if not run.folder.exists():
        return "lost settings" if has_begun(run.folder) else ""
    if found := run.other_setting():
        return f"another {found[0]}"
    if run.is_on_other_data():
        return "other data"
    changed = run.other_plugin() or run.other_evaluation()
    return f"another {changed}" if changed else ""


def _progress(runs: int, done: int, begun: Sequence[tuple[Result, State]], others: Sequence[str]) -> str:
    """Say how far a row is; ``begun`` has the unfinished runs, each with its state."""
    ended: Final[tuple[State, ...]] = ("stopped", "failed", "killed", "stalled", "incomplete")
    now = [
        f"{state} at epoch {result.progress}" if state in ended else f"epoch {result.progress}"
        for result, state in begun
    ]
    now += [f"{count} with {reason}" for reason, count in Counter(others).items()]
    return ", ".join([f"{done} of {runs}", *now]) if done or now else "not run yet"


def _shown(value: Spread | None, write: Callable[[float], str], *, spread: bool = True) -> str:
    if value is None:
        return ""
    return write(value.mean) + (f" ± {write(value.deviation)}" if spread and value.deviation is not None else "")
