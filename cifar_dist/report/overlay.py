"""Draw the curves of several runs in one picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cifar_dist.report.curves import steps_so_far, thin, usual_loss
from cifar_dist.report.results import name_final
from cifar_dist.report.style import BLUE, GREEN, GREY, INK, MARKABLE, ORANGE, PERCENT, PURPLE, RED, figure, short_names
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.table import EpochRow, EpochTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, INK, RED, GREY)
_MARKERS = "os^Dv"  # of runs that have a colour in common
SIGNS = len(_COLOURS) * len(_MARKERS)
"""Runs that a picture can tell apart; each one more has the colour and the marker of another."""
_NAME = 36  # characters
_MUCH = 2  # times the middle one of the runs' highest losses: a run above it has diverged, or not yet begun to learn
_MEANS = 80  # points of averaged training steps per run: with more, the lines hide each other

_Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Overlaid:
    """A run in the picture.

    Attributes:
        name: label of the run.
        records: of its ``metrics.jsonl``.
        steps_per_epoch: optimizer steps; 0 if unknown.
        test: accuracy of the final evaluation, a fraction; None before that.
        split: of the final evaluation; empty before that.
    """

    name: str
    records: Sequence[Record]
    steps_per_epoch: int
    test: float | None
    split: str


def draw_overlay(runs: Sequence[Overlaid], path: Path) -> Path:
    """Write loss and accuracy over epochs, one colour and marker per run, to ``path`` and return it.

    Dashed lines are the training data, solid lines the validation split, and stars the final evaluations. Of more than
    :data:`SIGNS` runs, some look alike.
    """
    title = f"Loss and accuracy of {', '.join(run.name for run in runs)}"
    with figure(path, 13, 4.5 + 0.25 * ((len(runs) - 1) // 4), title=title) as drawing:
        loss, accuracy = drawing.subplots(1, 2)
        for axes, what in ((loss, "Loss"), (accuracy, "Accuracy")):
            axes.set_title(what)
            axes.set_xlabel("epoch")
        lines, tops = [], list[float]()
        for place, run in enumerate(runs):
            colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place // len(_COLOURS) % len(_MARKERS)]
            shown = marker if len(runs) > len(_COLOURS) else ""
            lines += loss.plot([], [], color=colour, linewidth=4, marker=shown, markersize=9)
            rows = EpochTable(run.records).rows()
            tops.append(_draw_loss(loss, run, rows, colour, marker))
            _draw(accuracy, run, rows, "accuracy", colour, marker)
        for axes in (loss, accuracy):
            axes.set_xlim(left=0)
        loss.set_ylim(bottom=0, top=_common_top(tops))
        accuracy.yaxis.set_major_formatter(lambda value, _: PERCENT.format(x=100 * value))
        for split, label in (("train", "train"), ("val", "val"), ("test", name_final(run.split for run in runs))):
            _plot(accuracy, split, [], GREY, label=label)
        accuracy.legend(loc="best")
        names = short_names([run.name for run in runs], _NAME)
        # Not as labels of the lines: Matplotlib hides those that begin with a "_".
        drawing.legend(lines, names, loc="outside lower center", ncols=4)
    return path


def _common_top(tops: Sequence[float]) -> float | None:
    """Return where the axis ends: not at that of a run that has diverged, which would flatten the others."""
    known = sorted(filter(None, tops))
    return min(known[-1], _MUCH * statistics.median_low(known)) if known else None


def _draw_loss(axes: Axes, run: Overlaid, rows: Sequence[EpochRow], colour: str, marker: str) -> float:
    """Draw the losses of a run; return where the axis may end: outliers, as of a first epoch, would flatten all."""
    _draw(axes, run, rows, "loss", colour, marker)
    steps = [record.loss for record in run.records if record.split == "train"]
    return usual_loss(steps, [row for row in rows if np.isfinite(row.val_loss)])[0]


def _draw(
    axes: Axes, run: Overlaid, rows: Sequence[EpochRow], what: Literal["loss", "accuracy"], colour: str, marker: str
) -> None:
    steps = [record for record in run.records if record.split == "train"]
    if not steps:
        return
    per_epoch = run.steps_per_epoch or steps_so_far(steps)
    train = np.array([[record.step / per_epoch, getattr(record, what)] for record in steps], dtype=np.float64)
    _plot(axes, "train", [(float(x), float(y)) for x, y in thin(train, _MEANS)], colour)
    _plot(axes, "val", [(row.step / per_epoch, getattr(row, f"val_{what}")) for row in rows], colour, marker)
    if what == "accuracy" and run.test is not None:
        _plot(axes, "test", [(steps[-1].step / per_epoch, run.test)], colour)


def _plot(
    axes: Axes, split: str, points: _Points, colour: str, marker: str = _MARKERS[0], label: str | None = None
) -> None:
    known = [point for point in points if np.isfinite(point[1])]
    x, y = [x for x, _ in known], [y for _, y in known]
    if split == "train":
        axes.plot(x, y, color=colour, label=label, linestyle=(0, (4, 2)), linewidth=1.1, alpha=0.8)
    elif split == "val":
        # On a long line the first marker, which stands for all runs of that colour so far, is left out.
        shown, every = (marker, None) if len(x) <= MARKABLE else (marker.replace(_MARKERS[0], ""), len(x) // 20)
        axes.plot(x, y, color=colour, label=label, marker=shown, markevery=every, markersize=3.2)
    else:
        axes.plot(x, y, color=colour, label=label, marker="*", markersize=13, linestyle="none", zorder=5)
