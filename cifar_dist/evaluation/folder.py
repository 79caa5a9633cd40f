"""The evaluation folder: predictions, their summary, and the evaluated weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from cifar_dist.checkpoint.tensor_files import WeightsCopy
from cifar_dist.evaluation.predict import Predictions
from cifar_dist.evaluation.submission import write_submission
from cifar_dist.files import folder_atomic, free_name, write_sums
from cifar_dist.formatting import percent, percent_cell, views_of
from cifar_dist.run_folder import EvaluationFolder


@dataclass(frozen=True)
class Summary:
    """``summary.json`` of an evaluation.

    Attributes:
        run, checkpoint, step: the evaluated weights; the step is None if they are not a checkpoint.
        split, data, samples, classes: the data.
        tta: the views of each image, see ``eval.tta``.
        accuracy: fraction correct, None without labels.
        loss: mean cross-entropy in nats, None without labels; null in the file also if it is not finite.
        val_accuracy: of this checkpoint during training, None if it was not measured.
        seconds: wall time of the predictions.
        processes: number of processes that computed them.
        plain_accuracy: fraction correct without test-time augmentation, None without labels.
        tta_images: number of images that got all views, see ``eval.tta_below``.
        fingerprint: of the data; empty in evaluations of earlier versions.
    """

    run: str
    checkpoint: str
    step: int | None
    split: str
    data: str
    samples: int
    classes: tuple[str, ...]
    tta: str
    accuracy: float | None
    loss: float | None
    val_accuracy: float | None
    seconds: float
    processes: int
    plain_accuracy: float | None
    tta_images: int
    fingerprint: str = ""

    def result(self) -> str:
        """Say the accuracy in words, and that of the images themselves beside it."""
        tta = f"TTA {views_of(self.tta, self.tta_images, self.samples)}"
        if self.accuracy is None or self.plain_accuracy is None:
            return f"no labels, {tta}"
        if self.tta == "0":
            return f"accuracy {percent(self.accuracy)} without TTA"
        return f"accuracy {percent(self.accuracy)} with {tta}, {percent(self.plain_accuracy)} without"

    def warning(self) -> str:
        """Say that the network has diverged, or that test-time augmentation lowers the accuracy; empty if neither."""
        if self.loss is not None and not math.isfinite(self.loss):
            return "the loss is not finite: training has diverged, and the predictions mean nothing; lower --optim.lr"
        if self.accuracy is None or self.plain_accuracy is None or self.accuracy >= self.plain_accuracy:
            return ""
        return (
            f"TTA {self.tta} lowers the accuracy from {percent_cell(self.plain_accuracy)} to {percent(self.accuracy)}; "
            "evaluate with --tta 0, or train with --eval.tta 0"
        )


_SUMMARY = TypeAdapter(Summary)


def read_summary(path: Path) -> Summary | None:
    """Read a ``summary.json``; None if it is not what this version writes."""
    try:
        summary = _SUMMARY.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    diverged = summary.loss is None and summary.accuracy is not None
    return replace(summary, loss=math.nan) if diverged else summary


def write_evaluation(
    parent: Path,
    summary: Summary,
    predictions: Predictions,
    ids: Sequence[int | str],
    weights: WeightsCopy,
    labels: Sequence[int | str],
) -> Path:
    """Write ``{run}_val_acc_{acc}_{time}_model_{checkpoint}/``, complete or not at all.

    It contains ``submission.csv``, ``probabilities.npz``, ``summary.json``, ``model.safetensors``, a copy of the
    weights, and ``SHA256SUMS`` of these. The arrays are ``ids`` (int64 or str [N]), ``probabilities`` (float32
    [N, classes]) and, when known, ``labels`` (int64 [N]).

    Args:
        parent: the run's ``evaluations``.
        summary: what was evaluated.
        predictions: of every sample.
        ids: ID of each sample.
        weights: the evaluated file, whose suffix the copy gets.
        labels: predicted class of each sample, as the CSV names it.
    """
    accuracy = "unknown" if summary.val_accuracy is None else f"{summary.val_accuracy:.4f}"
    time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = f"{summary.run}_val_acc_{accuracy}_{time}_model_{summary.checkpoint}"
    target = free_name(parent / name)
    with folder_atomic(target) as temporary:
        folder = EvaluationFolder(temporary)
        write_submission(folder.submission, ids, labels)
        arrays = {"ids": np.asarray(ids), "probabilities": predictions.probabilities.numpy()}
        if predictions.labels is not None:
            arrays["labels"] = predictions.labels.numpy()
        with folder.probabilities.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        diverged = summary.loss is not None and not math.isfinite(summary.loss)
        facts = asdict(replace(summary, loss=None) if diverged else summary)  # JSON has no nan
        folder.summary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        weights.write(folder.weights.with_suffix(weights.suffix))
        write_sums(temporary)
    return target
