"""Draw one evaluation: confusion matrix, accuracy per class, calibration, and galleries of samples and mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.evaluation.calibration import calibration
from cifar_dist.formatting import counted, percent
from cifar_dist.report.evaluation_files import Evaluation, ImageOf
from cifar_dist.report.predictions import draw_predictions
from cifar_dist.report.sheet import Grid, sheet
from cifar_dist.report.style import BLUE, DOTS, GREY, ORANGE, PAPER, PERCENT, RED, Picture, bare, figure
from cifar_dist.run_folder import EvaluationFolder

SHEETS = {
    "samples.png": "A random sample of the images, each with its most probable classes",
    "mistakes.png": "The mistakes of the highest confidence, each with what it was taken for and what it is",
}
"""The sheets of images, which may be gone when a page is drawn again, and what they show."""
_MOST = 24  # images on a sheet
_MISTAKES = Grid(columns=8, width=1.45, height=1.78)
_CAPTION, _IMAGE = 0.34, 1.33  # inches
CELL = "#33628f"
"""Colour of a cell of the confusion matrix that has all images of its row; one of fewer has the root of its share."""
FULL_CELL = 0.73
"""Share of a row from which the number of a cell on paper is white: below, black has more contrast."""
NAMED_CLASSES = 30
"""With more classes, the names and numbers of a matrix would be illegible."""
_MOST_CELLS = 1000
"""Of a side of the matrix, which has fewer pixels on paper; of more classes, neighbours share a cell."""


def draw_evaluation(evaluation: Evaluation, image_of: ImageOf | None = None) -> list[Picture]:
    """Write the pictures into the evaluation's ``figures`` folder and return them, most informative first.

    Args:
        evaluation: with or without labels.
        image_of: returns the images for the galleries; None omits the galleries.
    """
    folder = EvaluationFolder(evaluation.folder).figures
    written = []
    if image_of is not None:
        written.append(_sheet(_samples(evaluation, image_of, folder / "samples.png")))
    if evaluation.labels is None:
        return written
    if image_of is not None and bool((evaluation.predicted != evaluation.labels).any()):
        written.append(_sheet(_mistakes(evaluation, evaluation.labels, image_of, folder / "mistakes.png")))
    written.append(_confusion(evaluation, evaluation.labels, folder / "confusion.png"))
    written.append(_per_class(evaluation, evaluation.labels, folder / "per_class.png"))
    written.append(_calibration(evaluation, evaluation.labels, folder / "calibration.png"))
    return written


def _sheet(path: Path) -> Picture:
    return Picture(path, SHEETS[path.name])


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count pairs of classes, int64 [classes, classes]: rows are true classes, columns predicted ones."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _confusion(evaluation: Evaluation, labels: NDArray[np.int64], path: Path) -> Picture:
    from matplotlib.colors import LinearSegmentedColormap

    classes = evaluation.probabilities.shape[1]
    cells = min(classes, _MOST_CELLS)
    matrix = confusion_matrix(labels * cells // classes, evaluation.predicted * cells // classes, cells)
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    named = classes <= NAMED_CLASSES
    side = min(9.0, 2.6 + 0.52 * classes)
    with figure(path, side + 0.6, side) as drawing:
        axes = drawing.subplots()
        bare(axes)
        axes.imshow(share**0.5, cmap=LinearSegmentedColormap.from_list("", [PAPER, CELL]), vmin=0, vmax=1)
        axes.set_title("Confusion matrix")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if named:
            names = [evaluation.name(label) for label in range(classes)]
            axes.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(classes), names)
            for row, column in np.argwhere(matrix):
                count = matrix[row, column]
                axes.text(
                    column,
                    row,
                    f"{count}",
                    ha="center",
                    va="center",
                    fontsize=8.5 if classes <= 12 else 6,
                    fontweight="bold" if row == column else "normal",
                    color="#FFFFFF" if share[row, column] >= FULL_CELL else "#000000",
                )
    return Picture(path, _say_confusion(evaluation, labels))


def _say_confusion(evaluation: Evaluation, labels: NDArray[np.int64]) -> str:
    wrong, classes = evaluation.predicted != labels, evaluation.probabilities.shape[1]
    text = f"Confusion matrix: {counted(int(wrong.sum()), 'mistake')} in {counted(len(labels), 'image')}"
    if not wrong.any():
        return text
    pairs, counts = np.unique((labels * classes + evaluation.predicted)[wrong], return_counts=True)
    true, predicted = map(evaluation.full_name, divmod(int(pairs[counts.argmax()]), classes))
    return f"{text}, most often {true} predicted as {predicted} ({counts.max()})"


def _per_class(evaluation: Evaluation, labels: NDArray[np.int64], path: Path) -> Picture:
    classes = evaluation.probabilities.shape[1]
    right = evaluation.predicted == labels
    counts, rights = (np.bincount(found, minlength=classes) for found in (labels, labels[right]))
    known = np.flatnonzero(counts).tolist()
    accuracy = 100 * rights / np.maximum(1, counts)
    order = sorted(known, key=lambda label: float(accuracy[label]))
    if len(order) > NAMED_CLASSES:
        order = [*order[: NAMED_CLASSES // 2], *order[-NAMED_CLASSES // 2 :]]
    with figure(path, 8, 1.4 + 0.3 * len(order)) as drawing:
        axes = drawing.subplots()
        mean = float(right.mean())
        which = "" if len(order) == len(known) else ", worst and best"
        title = f"Accuracy per class{which}, and of all images: {percent(mean, 1)}"
        axes.set_title(title)
        values = [float(accuracy[label]) for label in order]
        axes.axvline(100 * mean, color=GREY, linewidth=1, linestyle=DOTS)
        # Dots and not bars, whose lengths would lie on an axis that does not begin at 0.
        axes.scatter(values, range(len(order)), c=[ORANGE if v < 100 * mean else BLUE for v in values], s=60, zorder=3)
        axes.set_yticks(range(len(order)), [evaluation.name(label) for label in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        low = max(0.0, min(values) - 8)
        axes.set_xlim(low, 100 + (100 - low) * 0.09)
        axes.xaxis.set_major_formatter(PERCENT)
        for y, value in enumerate(values):
            axes.annotate(
                f"{value:.1f}",
                (value, y),
                (8, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
    each = (f"{evaluation.full_name(label)}: {v:.1f} %" for label, v in zip(order, values, strict=True))
    return Picture(path, f"{title}; {', '.join(each)}")


def _calibration(evaluation: Evaluation, labels: NDArray[np.int64], path: Path) -> Picture:
    """Reliability diagram and expected calibration error."""
    confidence, right = evaluation.confidence, evaluation.predicted == labels
    found = calibration(evaluation.probabilities, labels)
    error = found.error
    with figure(path, 8, 4.2) as drawing:
        left, beside = drawing.subplots(1, 2)
        left.set_title("Reliability")
        left.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=DOTS, label="perfect")
        points = (100 * found.confidence, 100 * found.accuracy)
        left.plot(*points, color=BLUE, marker="o", label=f"model, error {percent(error, 1)}")
        left.set_xlabel("confidence")
        left.set_xlim(0, 102)
        left.set_ylim(0, 102)
        left.xaxis.set_major_formatter(PERCENT)
        left.yaxis.set_major_formatter(PERCENT)
        left.legend(loc="lower right")  # where no network is: sure and almost always wrong
        beside.set_title("Distribution of confidence")
        edges = np.linspace(0, 100, 21)
        beside.hist(
            [100 * confidence[right], 100 * confidence[~right]],
            bins=edges.tolist(),
            stacked=True,
            color=[BLUE, ORANGE],
            label=["right", "wrong"],
        )
        beside.set_xlabel("confidence")
        beside.set_ylabel("images")
        beside.xaxis.set_major_formatter(PERCENT)
        beside.legend(loc="best")
    sure = f"the mean confidence is {percent(float(confidence.mean()), 1)}"
    return Picture(path, f"Calibration: the expected calibration error is {percent(error, 1)}, {sure}")


def _samples(evaluation: Evaluation, image_of: ImageOf, path: Path) -> Path:
    """Draw a random choice, always the same, so that the sheet is representative."""
    count = min(_MOST, len(evaluation.probabilities))
    chosen = np.random.default_rng(0).choice(len(evaluation.probabilities), count, replace=False)
    return draw_predictions(evaluation, sorted(chosen.tolist()), image_of, path)


def _mistakes(evaluation: Evaluation, labels: NDArray[np.int64], image_of: ImageOf, path: Path) -> Path:
    wrong = np.flatnonzero(evaluation.predicted != labels)
    worst = wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:_MOST].tolist()
    with sheet(path, *_MISTAKES.size(len(worst))) as drawing:
        drawing.title("The only mistake" if len(wrong) == 1 else f"The most confident of {len(wrong)} mistakes")
        for sample, (left, cell_top) in zip(worst, _MISTAKES.corners(len(worst)), strict=True):
            top = cell_top + _CAPTION
            predicted, true = int(evaluation.predicted[sample]), int(labels[sample])
            shares = [percent(evaluation.probabilities[sample, label], 0) for label in (predicted, true)]
            caption = f"{evaluation.name(predicted)} {shares[0]}\nis {evaluation.name(true)} {shares[1]}"
            middle = left + _MISTAKES.width / 2
            drawing.text(middle, top - 0.04, caption, 7, colour=RED, align="center", above=True, room=_IMAGE)
            drawing.image(middle - _IMAGE / 2, top, _IMAGE, image_of(sample), RED)
    return path
