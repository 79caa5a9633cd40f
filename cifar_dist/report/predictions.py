"""Draw a sheet of predictions: each image with its three most probable classes, marked right or wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cifar_dist.formatting import percent
from cifar_dist.report.style import BLUE, GREEN, GREY, INK, RED, bare, figure, show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cifar_dist.report.evaluation import Evaluation

_COLUMNS = 6
_BEST = 3
_TRACK = "#EEF0F3"


def draw_predictions(
    evaluation: Evaluation, chosen: Sequence[int], image_of: Callable[[int], NDArray[np.uint8]], title: str, path: Path
) -> Path:
    """Draw the samples ``chosen``, by their position in the split, and return ``path``.

    A bar is as long as its class is probable. That of the true class is green, a wrong first one red. Without labels,
    nothing is marked.
    """
    rows = -(-len(chosen) // _COLUMNS)
    with figure(path, 1.95 * _COLUMNS, 2.9 * rows + 0.5) as drawing:
        drawing.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        grid = drawing.add_gridspec(3 * rows, _COLUMNS, height_ratios=[1.6, 1.0, 0.12] * rows)  # the last is a gap
        for place, sample in enumerate(chosen):
            row, column = divmod(place, _COLUMNS)
            _draw_image(drawing.add_subplot(grid[3 * row, column]), evaluation, sample, image_of(sample))
            _draw_best(drawing.add_subplot(grid[3 * row + 1, column]), evaluation, sample)
    return path


def _draw_image(axes: Axes, evaluation: Evaluation, sample: int, image: NDArray[np.uint8]) -> None:
    if evaluation.labels is None:
        show_image(axes, image)
        return
    true = int(evaluation.labels[sample])
    right = true == int(evaluation.predicted[sample])
    colour = GREEN if right else RED
    axes.set_title(f"{'✓' if right else '✗'} {evaluation.name(true)}", fontsize=9.5, color=colour, loc="center", pad=4)
    show_image(axes, image, frame=colour)


def _draw_best(axes: Axes, evaluation: Evaluation, sample: int) -> None:
    """Draw a bar for each of the most probable classes, with its name and share above it."""
    probabilities = evaluation.probabilities[sample]
    best = np.argsort(-probabilities, kind="stable")[:_BEST]
    true = None if evaluation.labels is None else int(evaluation.labels[sample])
    bare(axes)
    axes.spines[:].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_ylim(_BEST, 0)
    for place, label in enumerate(best.tolist()):
        first = place == 0
        colour = BLUE if first and true is None else GREEN if label == true else RED if first else GREY
        share = float(probabilities[label])
        axes.barh(place + 0.8, 1, height=0.16, color=_TRACK)
        axes.barh(place + 0.8, share, height=0.16, color=colour)
        ink = INK if first else "#57606A"
        weight = "bold" if label == true else "normal"
        axes.text(0, place + 0.68, evaluation.name(label), fontsize=8, va="bottom", color=ink, fontweight=weight)
        axes.text(1, place + 0.68, _percent(share), fontsize=8, va="bottom", color=ink, ha="right")


def _percent(share: float) -> str:
    return "< 1 %" if 0 < share < 0.005 else percent(share, 0)
