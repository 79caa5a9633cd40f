"""Draw loss, accuracy and learning rate over a run: faint steps, strong epochs, and interruptions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cifar_dist.formatting import counted, loss_figure, percent
from cifar_dist.report.style import (
    BLUE,
    DOTS,
    GREY,
    MARKABLE,
    ORANGE,
    ORANGE_TEXT,
    PERCENT,
    PURPLE,
    RED,
    Picture,
    figure,
)
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.table import EpochRow, EpochTable
from cifar_dist.tracking.timeline import Event

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FAINT_POINTS = 1500  # more would blur, so neighbours are averaged
_MUCH = 1.5  # times the losses of training: a validation loss above would flatten the curves
_BREAKS = ("interrupted", "killed", "failed", "stalled")


@dataclass(frozen=True)
class _Run:
    """The data of the panels; x is in epochs, so that runs of different batch sizes are comparable."""

    steps: list[Record]
    rows: list[EpochRow]
    test: Record | None
    breaks: list[tuple[float, str]]  # where, and what ended the process there
    steps_per_epoch: float

    def x(self, step: float) -> float:
        return step / self.steps_per_epoch

    @property
    def validated(self) -> list[EpochRow]:
        """The epochs after which the validation split was evaluated."""
        return [row for row in self.rows if np.isfinite(row.val_loss)]


def draw_curves(
    records: Sequence[Record], events: Sequence[Event], folder: Path, steps_per_epoch: int
) -> list[Picture]:
    """Write loss.png, accuracy.png, lr.png, validation.png and overview.png (the first three) into ``folder``.

    Args:
        records: of ``metrics.jsonl``.
        events: of ``timeline.jsonl``; a thin line marks each interruption.
        folder: created if it does not exist.
        steps_per_epoch: optimizer steps; 0 if unknown.

    Returns:
        The pictures; none if no training step was recorded yet.
    """
    steps = [record for record in records if record.split == "train"]
    if not steps:
        return []
    per_epoch = steps_per_epoch or steps_so_far(steps)
    run = _Run(
        steps=steps,
        rows=[row for row in EpochTable(records).rows() if row.seconds > 0 or not math.isnan(row.val_loss)],
        test=next((record for record in reversed(records) if record.split not in ("train", "val")), None),
        breaks=[(event.step / per_epoch, event.kind) for event in events if event.kind in _BREAKS],
        steps_per_epoch=per_epoch,
    )
    panels: dict[str, Callable[[Axes, _Run], str]] = {"loss": _loss, "accuracy": _accuracy, "lr": _lr}
    alone = {**panels, "validation": _validation} if run.validated else panels
    pictures = []
    for name, panel in alone.items():
        path = folder / f"{name}.png"
        with figure(path, 8, 4.2) as drawing:
            text = panel(drawing.subplots(), run)
        pictures.append(Picture(path, text))
    path = folder / "overview.png"
    with figure(path, 14, 4.2) as drawing:
        texts = [panel(axes, run) for axes, panel in zip(drawing.subplots(1, 3), panels.values(), strict=True)]
    return [*pictures, Picture(path, "; ".join(texts))]


def steps_so_far(steps: Sequence[Record]) -> float:
    """Estimate the steps in one epoch: those before the second epoch, or all so far if that has not begun."""
    later = [record for record in steps if record.epoch > 0]
    if later:
        first = min(later, key=lambda record: record.step)
        return (first.step - 1) / first.epoch
    return max(record.step for record in steps)


def _loss(axes: Axes, run: _Run) -> str:
    """Draw the panel; return what it shows, as the others do."""
    axes.set_title("Loss")
    _train_and_val(axes, run, "loss", 1.0)
    _limit_loss(axes, run)
    _decorate(axes, run, legend=True)
    return f"Loss of {_last(run, 'loss', loss_figure)}"


def _limit_loss(axes: Axes, run: _Run) -> None:
    """End the axis where outliers would flatten the curves, as of a first epoch; those of validation are named.

    All is shown where the last one is an outlier: then the loss has risen.
    """
    top, cut = usual_loss([record.loss for record in run.steps], run.validated)
    axes.set_ylim(bottom=0, top=top or None)
    for row in cut:
        axes.plot([run.x(row.step)], [top], "^", color=ORANGE, markersize=4, clip_on=False)
    if cut:
        highest = max(cut, key=lambda row: row.val_loss)
        axes.annotate(
            f" {highest.val_loss:.3g}",
            (run.x(highest.step), top),
            color=ORANGE_TEXT,
            fontsize=8,
            va="top",
            clip_on=False,
        )


def usual_loss(train: Sequence[float], validated: Sequence[EpochRow]) -> tuple[float, list[EpochRow]]:
    """Return where the axis of a run's losses may end, 0 if none is finite, and the epochs above, which are outliers.

    Args:
        train: loss of each step.
        validated: the epochs that were evaluated.
    """
    finite = [loss for loss in train if np.isfinite(loss)]
    if not finite:
        return 0.0, []
    usual = float(np.quantile(finite, 0.995))
    has_risen = bool(validated) and validated[-1].val_loss > _MUCH * usual
    cut = [] if has_risen else [row for row in validated if row.val_loss > _MUCH * usual]
    return 1.05 * max([usual, *(row.val_loss for row in validated if row not in cut)]), cut


def _accuracy(axes: Axes, run: _Run) -> str:
    axes.set_title("Accuracy")
    _train_and_val(axes, run, "accuracy", 100.0)
    axes.yaxis.set_major_formatter(PERCENT)
    if run.test:
        _mark(axes, run, run.test)
    _decorate(axes, run, legend=True)
    final = f", {percent(run.test.accuracy)} on {run.test.split}" if run.test else ""
    return f"Accuracy of {_last(run, 'accuracy', percent)}{final}"


def _lr(axes: Axes, run: _Run) -> str:
    axes.set_title("Learning rate")
    points = [(run.x(record.step), record.lr) for record in run.steps if record.lr is not None]
    marker = "o" if len(points) == 1 else ""  # which has no line
    axes.plot([x for x, _ in points], [lr for _, lr in points], color=PURPLE, marker=marker)
    axes.set_ylim(bottom=0)
    _decorate(axes, run, legend=False)
    rates = [lr for _, lr in points]
    return "Learning rate" + (f" of each step, at most {max(rates):.4g}, at last {rates[-1]:.4g}" if rates else "")


def _validation(axes: Axes, run: _Run) -> str:
    """Draw loss on the left axis and accuracy on the right one: where they part, confidence grows but not accuracy."""
    axes.set_title("Validation")
    x = [run.x(row.step) for row in run.validated]
    right = axes.twinx()
    right.spines.right.set_visible(True)
    right.grid(False)
    marker = "o" if len(x) <= MARKABLE else ""
    axes.plot(x, [row.val_loss for row in run.validated], color=ORANGE, marker=marker, markersize=3.2)
    accuracies = [100 * row.val_accuracy for row in run.validated]
    right.plot(x, accuracies, color=BLUE, marker=marker, markersize=3.2)
    for side, colour, what in ((axes, ORANGE_TEXT, "loss"), (right, BLUE, f"accuracy, best {max(accuracies):.2f} %")):
        side.set_ylabel(what, color=colour)
        side.tick_params(axis="y", labelcolor=colour)
    right.yaxis.set_major_formatter(PERCENT)
    _limit_loss(axes, run)
    _decorate(axes, run, legend=False)
    lowest = min(row.val_loss for row in run.validated)
    best = f"accuracy at most {percent(max(accuracies) / 100)}, loss at least {loss_figure(lowest)}"
    return f"Validation after {counted(len(x), 'epoch')}: {best}"


def _last(run: _Run, what: Literal["loss", "accuracy"], shown: Callable[[float], str]) -> str:
    """Say what a run has reached, on the training data and on the validation split."""
    parts = []
    for split, name in (("train", "training"), ("val", "validation")):
        known = [value for row in run.rows if np.isfinite(value := getattr(row, f"{split}_{what}"))]
        parts += [f"{shown(known[-1])} in {name}"] if known else []
    return f"{counted(len(run.rows), 'epoch')}, at last {' and '.join(parts) or 'not finite'}"


def _train_and_val(axes: Axes, run: _Run, what: Literal["loss", "accuracy"], scale: float) -> None:
    points = np.array([[run.x(record.step), getattr(record, what)] for record in run.steps], dtype=np.float64)
    faint = thin(points, _FAINT_POINTS)
    axes.plot(faint[:, 0], scale * faint[:, 1], color=BLUE, alpha=0.28, linewidth=0.8, label="train, each step")
    x = [run.x(row.step) for row in run.rows]
    marker = "o" if len(x) <= MARKABLE else ""
    for name, colour in (("train", BLUE), ("val", ORANGE)):
        y = [scale * getattr(row, f"{name}_{what}") for row in run.rows]
        # Connect the line across epochs without an evaluation.
        known = [(a, b) for a, b in zip(x, y, strict=True) if np.isfinite(b)]
        if known:
            axes.plot(*zip(*known, strict=True), color=colour, marker=marker, markersize=3.2, label=name)


def thin(points: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Average neighbouring points [n, 2] so that at most ``most`` remain."""
    group = -(-len(points) // most)
    starts = np.arange(0, len(points), group)
    counts = np.diff(np.append(starts, len(points)))
    thinned: NDArray[np.float64] = np.add.reduceat(points, starts, axis=0) / counts[:, None]
    return thinned


def _mark(axes: Axes, run: _Run, test: Record) -> None:
    x, y = run.x(test.step), 100 * test.accuracy
    axes.plot(
        [x], [y], color=RED, marker="*", markersize=13, linestyle="none", label=f"{test.split} {y:.2f} %", zorder=5
    )


def _decorate(axes: Axes, run: _Run, *, legend: bool) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(0, run.x(run.steps[-1].step) * 1.02)
    ended = {kind for _, kind in run.breaks}
    for index, (x, _) in enumerate(run.breaks):
        label = ", ".join(kind for kind in _BREAKS if kind in ended) if index == 0 else None
        axes.axvline(x, color=GREY, linewidth=1, linestyle=DOTS, zorder=1, label=label)
    if legend:
        axes.legend(loc="best")  # not every loss falls, and no curve may be covered
