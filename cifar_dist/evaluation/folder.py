"""The evaluation folder: predictions, their summary, and the evaluated weights."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cifar_dist.checkpoint.tensor_files import WeightsCopy
from cifar_dist.evaluation.labels_csv import write_submission
from cifar_dist.evaluation.predict import Predictions
from cifar_dist.files.atomic import write_numbered
from cifar_dist.files.checksums import write_sums
from cifar_dist.run_folder import EvaluationFolder, EvaluationSummary


def write_evaluation(
    parent: Path,
    summary: EvaluationSummary,
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

    def write(temporary: Path) -> None:
        folder = EvaluationFolder(temporary)
        write_submission(folder.submission, ids, labels)
        arrays = {"ids": np.asarray(ids), "probabilities": predictions.probabilities.numpy()}
        if predictions.labels is not None:
            arrays["labels"] = predictions.labels.numpy()
        with folder.probabilities.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        folder.summary.write_text(summary.to_json(), encoding="utf-8")
        weights.write(folder.weights.with_suffix(weights.suffix))
        write_sums(temporary)

    return write_numbered(parent / EvaluationFolder.name_of(summary, datetime.now(UTC)), write)
