"""Draw a sheet of predictions: each image with its three most probable classes, marked right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.formatting import rounded_percent
from cifar_dist.report.evaluation_files import Evaluation, ImageOf
from cifar_dist.report.sheet import Grid, Sheet, sheet
from cifar_dist.report.style import BLUE, FAINT, GREEN, GREY, INK, RED

_GRID = Grid(columns=6, width=1.95, height=2.98)
_BEST = 3
_TRACK = "#EEF0F3"

# Inches.
_IMAGE = 1.55
_MARGIN = 0.12
_CAPTION = 0.22
_BAR, _STEP = 0.05, 0.31  # the height of a bar, and from one to the next


def draw_predictions(evaluation: Evaluation, chosen: Sequence[int], image_of: ImageOf, path: Path) -> Path:
    """Draw the samples ``chosen``, by their position in the split, and return ``path``.

    A bar is as long as its class is probable. That of the true class is green, a wrong first one red. Without labels,
    nothing is marked.
    """
    with sheet(path, *_GRID.size(len(chosen))) as drawing:
        drawing.title("A random sample")
        for sample, (left, top) in zip(chosen, _GRID.corners(len(chosen)), strict=True):
            _draw_image(drawing, left, top, evaluation, sample, image_of(sample))
            _draw_best(drawing, left, top + _CAPTION + _IMAGE + 0.1, evaluation, sample)
    return path


def _draw_image(
    drawing: Sheet, left: float, top: float, evaluation: Evaluation, sample: int, image: NDArray[np.uint8]
) -> None:
    colour = ""
    if evaluation.labels is not None:
        true = int(evaluation.labels[sample])
        right = true == int(evaluation.predicted[sample])
        colour = GREEN if right else RED
        caption = f"{'✓' if right else '✗'} {evaluation.name(true)}"
        middle, above = left + _GRID.width / 2, top + _CAPTION - 0.04
        drawing.text(middle, above, caption, 9.5, colour=colour, bold=True, align="center", above=True, room=_IMAGE)
    drawing.image(left + (_GRID.width - _IMAGE) / 2, top + _CAPTION, _IMAGE, image, colour)


def _draw_best(drawing: Sheet, left: float, top: float, evaluation: Evaluation, sample: int) -> None:
    """Draw a bar for each of the most probable classes, with its name and share above it."""
    probabilities = evaluation.probabilities[sample]
    best = np.argsort(-probabilities, kind="stable")[:_BEST]
    true = None if evaluation.labels is None else int(evaluation.labels[sample])
    left, width = left + _MARGIN, _GRID.width - 2 * _MARGIN
    for place, label in enumerate(best.tolist()):
        first, bar = place == 0, top + _STEP * place + 0.18
        colour = BLUE if first and true is None else GREEN if label == true else RED if first else GREY
        share = float(probabilities[label])
        drawing.bar(left, bar, width, _BAR, _TRACK)
        drawing.bar(left, bar, width * share, _BAR, colour)
        ink, bold, above = INK if first else FAINT, label == true, bar - 0.02
        drawing.text(left, above, evaluation.name(label), 8, colour=ink, bold=bold, above=True, room=0.8 * width)
        drawing.text(left + width, above, rounded_percent(share), 8, colour=ink, align="right", above=True)
