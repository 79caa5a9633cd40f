"""Predict a file of unlabelled images into an ``ID,Labels`` CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cifar_dist.data.batches import Images
from cifar_dist.data.manifest import FILE_NAME, Manifest
from cifar_dist.data.unlabelled import read_unlabelled
from cifar_dist.distributed.engine import Engine
from cifar_dist.errors import UserError
from cifar_dist.evaluation.evaluate import sample_ids
from cifar_dist.evaluation.predict import Stream
from cifar_dist.evaluation.split import Predictor
from cifar_dist.evaluation.submission import write_submission
from cifar_dist.evaluation.trained import Trained, load_model


def predict_file(engine: Engine, trained: Trained, source: Path, tta: str, out: Path) -> int:
    """Predict every image of ``source`` once, write one row for each in its order, and return their number. Collective.

    Args:
        engine: this process in the job.
        trained: the run and checkpoint.
        source: a pickle or npz with ``data`` and ``ids``, or a packed dataset (its ``test`` split).
        tta: see ``eval.tta``.
        out: the CSV.

    Raises:
        UserError: a source that cannot be read, has another image shape or repeats an ID, or ``out`` is not writable.
    """
    model, ranks = load_model(engine, trained), engine.ranks
    stream, ids, shape = ranks.run_on_all(lambda: _open(ranks.device, trained, source))
    if shape != trained.trained_on.shape:
        raise UserError(f"images of {source} are {shape}; the run was trained on {trained.trained_on.shape}")
    predictor = Predictor(ranks.device, trained.config, trained.trained_on)
    predictions = predictor.predict(model, stream, len(ids), tta, show=f"predicting {source.name}")
    ranks.run_on_main(lambda: write_submission(out, ids, predictions.classes.tolist()))
    return len(ids)


def _open(device: torch.device, trained: Trained, source: Path) -> tuple[Stream, list[int], tuple[int, int, int]]:
    if (source / FILE_NAME).is_file():
        data = Manifest.load(source)
        return Images(data, "test", trained.config.data, device).stream, sample_ids(data, "test"), data.shape
    unlabelled = read_unlabelled(source)
    pixels = torch.from_numpy(unlabelled.images)

    def stream(requests: Sequence[Tensor]) -> Iterator[Tensor]:
        return (pixels[ids].to(device) for ids in requests)

    height, width, channels = unlabelled.images.shape[1:]
    return stream, unlabelled.ids.tolist(), (height, width, channels)
