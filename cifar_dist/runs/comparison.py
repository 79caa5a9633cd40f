"""Compare runs side by side: the settings in which they differ, and their results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cifar_dist.config.changes import differences, short_key
from cifar_dist.config.settings import settings_of
from cifar_dist.errors import UserError, in_one_line
from cifar_dist.report.overlay import Overlaid, draw_overlay
from cifar_dist.report.results import Result, data_names, lost_metrics, read_result, read_state
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.kept_plugins import versions_used
from cifar_dist.tables import markdown_folded
from cifar_dist.tracking import metrics


class Comparison:
    """A comparison of runs as they are now.

    Args:
        runs: their folders.

    Attributes:
        runs: those that are compared.
        problems: which runs are left out because they are damaged, and what others have lost of their metrics; one line
            each.

    Raises:
        UserError, OSError: all of them are damaged or cannot be read; it is that of the first.
    """

    def __init__(self, runs: Iterable[RunFolder]) -> None:
        self.runs: list[RunFolder] = []
        self.results: list[Result] = []
        self.problems: list[str] = []
        errors: list[UserError | OSError] = []
        for run in runs:
            try:
                result = read_result(run)
                lost = lost_metrics(run, result.step, read_state(run))
            except (UserError, OSError) as error:
                errors.append(error)
                self.problems.append(f"{run.path} is left out: {in_one_line(error)}")
                continue
            self.runs.append(run)
            self.results.append(result)
            self.problems += [lost] if lost else []
        if errors and not self.runs:
            raise errors[0]

    def markdown(self, width: int | None = None) -> str:
        """Format a column for each run, its results below its settings, with the best accuracy in bold.

        No accuracy is the best among those on different data or splits.

        Args:
            width: of the terminal that it must fit into; None for no limit.
        """
        differ = differences([settings_of(result.config) for result in self.results])
        rows = [[f"`{short_key(key, differ)}`", *values] for key, values in differ.items()]
        rows += self._plugin_versions()
        data = data_names(self.results)
        splits = {result.eval_split for result in self.results if result.final}
        is_comparable = {"val %": len(set(data)) == 1, "test %": len(set(data)) == 1 and len(splits) < 2}
        rows.append(["data", *data])
        for column in ("parameters", "epochs", "train %", "val %", "test %", "TTA", "time"):
            cells = [result.cells[column] for result in self.results]
            rows.append([column, *(_best(cells) if is_comparable.get(column) else cells)])
        rows.append(["on", *(_on(result) for result in self.results)])
        rows = [row for row in rows if any(row[1:])]
        return markdown_folded(["", *self.names], rows, width)

    def _plugin_versions(self) -> list[list[str]]:
        """Return a row for each plug-in of which the runs used different versions: the beginnings of checksums."""
        used = [versions_used(run.plugins, result.config) for run, result in zip(self.runs, self.results, strict=True)]
        code = dict.fromkeys(one for of_run in used for one in of_run)
        differ = [one for one in code if len({of_run[one] for of_run in used if one in of_run}) > 1]
        return [[f"`{Path(one).name}`", *(of_run.get(one, "")[:8] for of_run in used)] for one in differ]

    def draw(self, path: Path) -> Path:
        """Draw loss and accuracy of all runs into one picture; return ``path``."""
        runs = []
        for name, run, result in zip(self.names, self.runs, self.results, strict=True):
            records = metrics.read(run.metrics)
            facts, accuracy = result.facts, result.test_accuracy
            runs.append(Overlaid(name, records, facts.steps_per_epoch, accuracy, result.eval_split))
        return draw_overlay(runs, path)

    @property
    def names(self) -> list[str]:
        """Return a label for each run: its folder's name, or its path if names repeat."""
        names = [run.name for run in self.runs]
        return [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, self.runs, strict=True)]


def _best(cells: Sequence[str]) -> list[str]:
    """Percentages, each with its split where that is named, the highest in bold if there are several."""
    values = [float(cell.split()[0]) if cell else None for cell in cells]
    best = max((value for value in values if value is not None), default=None)
    is_best = [len(cells) > 1 and value is not None and value == best for value in values]
    return [f"**{cell}**" if is_one else cell for cell, is_one in zip(cells, is_best, strict=True)]


def _on(result: Result) -> str:
    facts = result.facts
    parts = (facts.wrapper, facts.device, facts.precision)
    if not facts.processes or not all(parts):
        return ""
    times = "" if facts.wrapper == "one process" else f"{facts.processes} x "
    return times + ", ".join(parts)
