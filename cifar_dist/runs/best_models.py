"""Collect the best weights of all runs in one folder, with a table that ranks them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Final

from cifar_dist import checkpoint
from cifar_dist.checkpoint.tensor_files import WeightsCopy
from cifar_dist.errors import UserError, in_one_line, printable, quoted
from cifar_dist.files.atomic import folder_atomic, write_atomic
from cifar_dist.files.checksums import changed_files
from cifar_dist.report.results import Result, data_names, is_on_other_data, own_data_of
from cifar_dist.run_folder import FINAL, RunFolder, read_summary
from cifar_dist.runs.listing import ListedRun
from cifar_dist.tables import csv_text
from cifar_dist.tracking.metrics import val_accuracies, val_accuracy_of

TABLE = "models.csv"
_EARLIER_HEAD: Final = ["file", "run", "checkpoint", "model", "dataset", "parameters", "val_accuracy", "test_accuracy"]
_HEAD: Final = [*_EARLIER_HEAD, "eval_split"]


@dataclass(frozen=True)
class BestModel:
    """The best weights of a run.

    Attributes:
        entry: the run.
        name: the checkpoint's, or ``final``.
        weights: their safetensors file, or its parts.
        val: validation accuracy, a fraction; None if it was not measured.
        test: accuracy of these weights in an evaluation such as the final one; None if it was not measured.
        split: of that evaluation; empty if there was none.
        data: names what the run is trained on, as :func:`data_names` does.
    """

    entry: ListedRun
    name: str
    weights: tuple[Path, ...]
    val: float | None
    test: float | None
    split: str
    data: str = ""

    @property
    def file_name(self) -> str:
        """``RUN_val_acc_0.9456_step-00001234.safetensors``."""
        accuracy = "unknown" if self.val is None else f"{self.val:.4f}"
        return f"{self.entry.run.name}_val_acc_{accuracy}_{self.name}.safetensors"


def best_models(entries: Iterable[ListedRun], warn: Callable[[str], None], top: int | None = None) -> list[BestModel]:
    """Return the best weights of each run that has any, the best run first.

    Accuracies on several datasets do not compare, nor those on several splits: the runs of each have a ranking of their
    own, one after the other; of a dataset those with a validation accuracy first, then those with a test accuracy only.

    Args:
        entries: the runs.
        top: how many runs of each dataset and split to return; None for all.
        warn: called with one line for each run that is left out because it is damaged or cannot be read, and for
            damaged weights.

    Raises:
        UserError: no run has weights.
    """
    found: list[BestModel] = []
    warnings: list[str] = []

    def note(line: str) -> None:
        warnings.append(line)
        warn(line)

    for entry in entries:
        try:
            model = _best_of(entry, note)
        except OSError as error:
            note(f"{entry.run.path} is left out: {in_one_line(error)}")
        else:
            found += [] if model is None else [model]
    if not found and warnings:
        raise UserError("no run has weights that can be used; repair one of those above, or train one")
    if not found:
        raise UserError("no run has a checkpoint or final weights yet; train one first")
    names = data_names([model.entry.result for model in found])
    named = [replace(model, data=name) for model, name in zip(found, names, strict=True)]
    rankings = groupby(sorted(named, key=lambda model: (_ranking(model), _rank(model))), key=_ranking)
    return [model for _, ranking in rankings for model in islice(ranking, top)]


def collect(models: Sequence[BestModel], out: Path) -> Path:
    """Copy the weights into the folder ``out`` beside a table of them, ``models.csv``; return the table.

    Raises:
        UserError: ``out`` has files that this function did not write, or cannot be written; weights cannot be read.
    """
    if out.exists():
        _refuse_foreign(out)
    names: list[str] = []
    for model in models:
        taken = model.file_name in names  # by a run of the same name in another folder
        names.append(f"{len(names) + 1}_{model.file_name}" if taken else model.file_name)
    try:
        with folder_atomic(out, replace=True) as folder:
            for model, name in zip(models, names, strict=True):
                _read(model).write(folder / name)
            write_atomic(folder / TABLE, _table(models, names))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    return out / TABLE


def _read(model: BestModel) -> WeightsCopy:
    try:
        return WeightsCopy(model.weights)
    except OSError as error:
        again = "if the run deleted it just now, run the same command again"
        raise UserError(f"{in_one_line(error)}; {again}") from None


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace a folder that has anything but what :func:`collect` wrote into it."""
    if not (out / TABLE).is_file():
        raise UserError(f"{out} exists and has no {TABLE}; use another --out")
    if out.resolve() == Path.cwd():
        raise UserError(f"{out} is the working directory, which would be replaced; use another --out")
    with (out / TABLE).open(newline="", encoding="utf-8", errors="replace") as file:
        table = csv.DictReader(file)
        own = {TABLE, *(row["file"] for row in table)} if table.fieldnames in (_HEAD, _EARLIER_HEAD) else set()
    if not own:
        raise UserError(f"{out} has a {TABLE} that runs best has not written; use another --out")
    foreign = sorted(path.name for path in out.iterdir() if path.name not in own)
    if foreign:
        raise UserError(
            f"{out} has {printable(foreign[0])}, which {TABLE} does not list; move it, or use another --out"
        )


def _best_of(entry: ListedRun, warn: Callable[[str], None]) -> BestModel | None:
    folder, verify = entry.run, f"cifar-dist checkpoint verify {quoted(entry.run.path)}"
    if entry.result is None:
        warn(f"{entry.run.path} is left out: {entry.problem}")
        return None
    if checkpoint.listing(folder.checkpoints):
        try:
            path = checkpoint.named(folder.checkpoints, "best")
            state = checkpoint.read_state(path)
            accuracy = val_accuracy_of(state, val_accuracies(folder))
            if accuracy is not None or not folder.final.is_file():
                test = _test_accuracy(folder, entry.result, path.name, state.step)
                split = "" if test is None else entry.result.config.eval.split
                return BestModel(entry, path.name, checkpoint.evaluated_weights(path), accuracy, test, split)
        except UserError as error:
            what, _, _ = str(error).partition("; ")  # the remedies are those of a command that takes a step
            what += f"; {verify}"
            if not folder.final.is_file():
                warn(f"{entry.run.path} is left out: {what}")
                return None
            warn(f"the final weights of {entry.run.path} stand for its best ones: {what}")
    if not folder.final.is_file():
        return None
    if changed_files(folder.final.parent):
        warn(f"{entry.run.path} is left out: {folder.final} is damaged; {verify}")
        return None
    if entry.problem:  # the last validation accuracy may be one of other weights
        warn(entry.problem)
    val = None if entry.problem else entry.val
    return BestModel(entry, FINAL, (folder.final,), val, entry.test, entry.result.eval_split)


def _test_accuracy(run: RunFolder, result: Result, name: str, step: int) -> float | None:
    """Return the accuracy of a checkpoint where it was evaluated as the final weights are; None if it was not."""
    config, final = result.config, result.final
    split, tta = config.eval.split, result.tta or config.distinct_tta  # as evaluate records it
    known = None if final is None else final.tta_below
    threshold = config.eval.tta_below if known is None else known
    for evaluation in run.evaluation_folders():
        summary = read_summary(evaluation.summary)
        if summary is None:
            continue
        is_these = summary.checkpoint == name or (summary.checkpoint == FINAL and summary.step == step)
        at_threshold = tta == "0" or summary.tta_below in (None, threshold)
        is_such = is_these and (summary.split, summary.tta) == (split, tta) and at_threshold
        # Last, because it reads a large file.
        if is_such and summary.accuracy is not None and not is_on_other_data(summary, own_data_of(run)):
            return summary.accuracy
    return None


def _ranking(model: BestModel) -> tuple[str, bool, bool, str]:
    """Return what the runs of one ranking have in common: the data, and the split of the accuracy; none comes last."""
    split = "val" if model.val is not None else model.split if model.test is not None else ""
    return model.data, split != "val", not split, split


def _rank(model: BestModel) -> tuple[float, Path]:
    accuracy = next((value for value in (model.val, model.test) if value is not None), -1.0)
    return -accuracy, model.entry.run.path


def _table(models: Sequence[BestModel], names: Sequence[str]) -> str:
    rows = []
    for model, name in zip(models, names, strict=True):
        result = model.entry.result
        about = (result.config.model.name, model.data, result.parameters) if result else ("", "", "")
        rows.append([name, model.entry.run.path, model.name, *about, model.val, model.test, model.split])
    return csv_text(_HEAD, rows)
