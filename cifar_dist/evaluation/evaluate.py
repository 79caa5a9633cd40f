"""Evaluate one checkpoint of a run on one split, and write an evaluation folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cifar_dist.checkpoint.tensor_files import WeightsCopy
from cifar_dist.config import Config
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.wrapped_model import InferenceModel
from cifar_dist.evaluation.checkpoint_ref import CheckpointRef
from cifar_dist.evaluation.folder import write_evaluation
from cifar_dist.evaluation.labels_csv import class_labels, sample_ids
from cifar_dist.evaluation.split import Split
from cifar_dist.run_folder import EvaluationSummary, RunFolder
from cifar_dist.terminal.progress import Show, silent


def evaluate(
    model: InferenceModel,
    config: Config,
    run: RunFolder,
    weights: CheckpointRef,
    data: Manifest,
    split: str,
    *,
    trained_on: Manifest,
    poll: Callable[[], None] = lambda: None,
    record: Callable[[EvaluationSummary], None] = lambda summary: None,
    show: Show = silent,
) -> tuple[Path, EvaluationSummary]:
    """Predict every sample of ``split`` once and write the evaluation folder. Collective.

    Args:
        model: the network, with ``weights`` loaded.
        config: the run's, with the views to use.
        run: the run folder.
        weights: which weights ``model`` has.
        data: the packed dataset.
        split: one of its splits.
        trained_on: manifest of the run's training data.
        poll: called before each batch; it may raise to stop.
        record: called with the summary before the folder exists, which finishes a run.
        show: shows the progress.

    Returns:
        The folder and its summary.

    Raises:
        UserError: no such split, images of another shape, a damaged shard, or a folder that cannot be written.
    """
    ranks, tta = model.ranks, config.distinct_tta
    opened = ranks.run_on_all(lambda: Split(ranks.device, config, data, split, trained_on))
    copies: list[WeightsCopy] = []  # of rank 0, made now: a run that is training deletes its older checkpoints
    ranks.run_on_main(lambda: copies.append(WeightsCopy(weights.files)))
    begin = time.perf_counter()
    predictions = opened.predict(model, tta, poll=poll, show=show)
    is_labelled = predictions.labels is not None
    summary = EvaluationSummary(
        run=run.name,
        checkpoint=weights.name,
        step=weights.step,
        split=split,
        data=data.name,
        samples=len(predictions.logits),
        classes=trained_on.classes,
        tta=tta,
        accuracy=predictions.accuracy if is_labelled else None,
        loss=predictions.loss if is_labelled else None,
        val_accuracy=weights.val_accuracy,
        seconds=round(time.perf_counter() - begin, 3),
        processes=ranks.world_size,
        plain_accuracy=predictions.plain_accuracy if is_labelled else None,
        tta_images=predictions.viewed if tta != "0" else 0,
        fingerprint=data.fingerprint,
        split_fingerprint=data.split_fingerprint(split),
        tta_below=config.eval.tta_below,
        calibration_error=predictions.calibration_error if is_labelled else None,
    )
    record(summary)
    ids = sample_ids(data, split)
    labels = class_labels(trained_on, predictions.classes.tolist(), "auto")
    folder = ranks.run_on_main(lambda: write_evaluation(run.evaluations, summary, predictions, ids, copies[0], labels))
    return folder, summary
