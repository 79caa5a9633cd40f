"""Read the results of a run from its folder, for tables of runs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cifar_dist.config import Config
from cifar_dist.config.saved import read_config
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError, quoted
from cifar_dist.formatting import duration, percent_cell
from cifar_dist.run_folder import EvaluationSummary, RunFolder
from cifar_dist.tracking import metrics, timeline
from cifar_dist.tracking.environment import read_facts
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.table import EpochRow, EpochTable

State = Literal["finished", "training", "stopped", "failed", "killed", "stalled", "incomplete", "not begun"]
"""What became of a run so far; ``killed`` also where only the next start would record it."""
_ENDS: Final[Mapping[timeline.Kind, State]] = {
    "interrupted": "stopped",
    "finished": "incomplete",
    "failed": "failed",
    "killed": "killed",
    "stalled": "stalled",
}
"""The state of a run without all its results, by the kind of the event that ended its last process."""


@dataclass(frozen=True)
class Result:
    """The state of a run; None for what was not measured yet.

    Attributes:
        config: its settings.
        epochs: number of epochs that have begun.
        step: optimizer steps done at the last record; 0 before the first.
        seconds: training time over all its processes, without evaluation.
        train_accuracy, val_accuracy: fractions, of the last epoch that has one.
        final: the evaluation of the final weights.
        facts: the facts in ``environment.json``; empty if unknown.
        origin: what the run branched from and how its length changed; empty if neither.
    """

    config: Config
    epochs: int
    step: int
    seconds: float
    train_accuracy: float | None
    val_accuracy: float | None
    final: EvaluationSummary | None
    facts: RunFacts
    origin: str

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy in the final evaluation, a fraction."""
        return self.final.accuracy if self.final else None

    @property
    def eval_split(self) -> str:
        """The split of the final evaluation; empty before that."""
        return self.final.split or self.config.eval.split if self.final else ""

    @property
    def tta(self) -> str:
        """The views of the final evaluation; empty before that."""
        return self.final.tta if self.final else ""

    @property
    def progress(self) -> str:
        """Epochs that have begun: ``8 of 8``, ``3 of 24``."""
        return f"{self.epochs} of {self.config.train.epochs}"

    @property
    def parameters(self) -> int | None:
        """Number of parameters, trainable or not; None if unknown."""
        return self.facts.parameters or None

    @property
    def cells(self) -> dict[str, str]:
        """The cells of a table for people, by the name of the column; empty if unknown."""
        return {
            "model": self.config.model.name,
            "data": self.facts.dataset,
            "parameters": "" if self.parameters is None else f"{self.parameters:,}",
            "epochs": self.progress,
            "train %": percent_cell(self.train_accuracy),
            "val %": percent_cell(self.val_accuracy),
            "test %": with_split(percent_cell(self.test_accuracy), self.eval_split),
            "TTA": self.final.views if self.final else "",
            "time": duration(self.seconds) if self.epochs else "",
        }


def with_split(cell: str, split: str) -> str:
    """Add its split to an accuracy in the column ``test %`` where that is another: ``91.08 (val)``."""
    return f"{cell} ({split})" if cell and split != "test" else cell


def name_final(splits: Iterable[str]) -> str:
    """Name final evaluations in a legend: ``test``, or ``final (val)`` where they are on other splits.

    Args:
        splits: of each run; empty before its evaluation.
    """
    known = {split for split in splits if split} or {"test"}
    return "test" if known == {"test"} else f"final ({', '.join(sorted(known))})"


def read_result(run: RunFolder) -> Result:
    """Read a run folder; only ``config.toml`` is required.

    Raises:
        UserError: not a run folder, or its config or metrics are damaged.
    """
    config = read_config(run.config)
    rows = EpochTable(metrics.read(run.metrics)).rows()
    return Result(
        config=config,
        epochs=len(rows),
        step=last_step(rows),
        seconds=sum(row.seconds for row in rows),
        train_accuracy=_last([row.train_accuracy for row in rows]),
        val_accuracy=_last([row.val_accuracy for row in rows]),
        final=run.final_summary(),
        facts=read_facts(run.environment),
        origin=timeline.origin(timeline.read(run.timeline)),
    )


def last_step(rows: Sequence[EpochRow]) -> int:
    """Return the optimizer steps done at the last record of epochs; 0 for none."""
    return max((row.step for row in rows), default=0)


def read_state(run: RunFolder) -> State:
    """Name the state of a run.

    A run is incomplete if it has finished, and has lost its final weights or evaluation or was extended since.

    Raises:
        UserError: its config is damaged.
    """
    if run.is_finished():
        return "finished"
    event = timeline.last_of_a_process(timeline.read(run.timeline))
    if event is None:
        return "not begun"
    if event.kind in _ENDS:
        return _ENDS[event.kind]
    return "training" if run.in_use() else "killed"


def lost_metrics(run: RunFolder, step: int, state: State) -> str:
    """Say in one line that ``metrics.jsonl`` lacks what a run wrote: the results may be those of an earlier epoch.

    Args:
        run: its folder.
        step: of the last of its metrics; 0 if it has none.
        state: of the run.

    Returns:
        The line; empty if nothing is lost, and if that is unknown, as while the run trains.
    """
    change = "" if state == "training" else metrics.difference(run.metrics)
    again = f"restore it, or write again what can be: cifar-dist resume {quoted(run.path)}"
    if change == "shorter":
        return f"{run.metrics} has lost records, so the results shown may be those of an earlier epoch; {again}"
    if change == "changed":
        return f"{run.metrics} is not what the run wrote; {again}"
    if state != "finished":
        return ""
    end = timeline.last_of_a_process(timeline.read(run.timeline))  # which tells where the checksum was not copied
    last = end.step if end is not None and end.kind == "finished" else 1
    return f"{run.metrics} has lost steps of a finished run after step {step:,}; restore it" if step < last else ""


def files_of_report(run: RunFolder) -> str:
    """Return a comment that says which state of a run its report shows. Times do not tell: a clock may be set."""
    facts: list[tuple[int | str, ...]] = []
    for file in (run.config, run.timeline, run.metrics, run.lr_curve):
        try:
            status = file.stat()
        except OSError:
            facts.append(())
        else:
            facts.append((status.st_size, status.st_mtime_ns))
    facts.append(tuple(evaluation.path.name for evaluation in run.evaluation_folders()))
    return f"<!-- files: {hashlib.sha256(repr(facts).encode()).hexdigest()[:32]} -->"


def data_names(results: Sequence[Result | None]) -> list[str]:
    """Name the data of each run: runs have equal names if they are on the same data, as far as that is known.

    Data of one name and other content has the beginning of its fingerprint beside its name.
    """
    data = [(result.facts.dataset, result.facts.fingerprint) if result else ("", "") for result in results]
    contents = {known for known in data if all(known)}
    has_one = {name: sum(other == name for other, _ in contents) < 2 for name, _ in data}
    return [name if has_one[name] or not fingerprint else f"{name} ({fingerprint[:8]})" for name, fingerprint in data]


def own_data_of(run: RunFolder) -> Manifest | None:
    """Read the manifest of the data that a run was trained on; None if it is missing or damaged."""
    try:
        return run.read_manifest()
    except UserError:
        return None


def is_on_other_data(summary: EvaluationSummary, own: Manifest | None) -> bool:
    """Whether an evaluation is on another dataset than its run's, or on other labels, as far as that is known.

    Args:
        summary: of the evaluation; that of an earlier version has only the name of its data, or does not know labels.
        own: the data of the run.
    """
    if own is None:
        return False
    if not summary.fingerprint:
        return summary.data != own.name
    return summary.fingerprint != own.fingerprint or has_changed_manifest(summary, own)


def has_changed_manifest(summary: EvaluationSummary, own: Manifest) -> bool:
    """Whether the evaluated split has the shards of ``own``, and other labels or positions in them."""
    is_known = summary.fingerprint == own.fingerprint and summary.split_fingerprint and summary.split in own.splits
    return bool(is_known) and summary.split_fingerprint != own.split_fingerprint(summary.split)


def _last(values: list[float]) -> float | None:
    """Return the last value that is not nan."""
    return next((value for value in reversed(values) if not math.isnan(value)), None)
