"""Predict a file of unlabelled images into an ``ID,Labels`` CSV."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.same_dataset import check_same_images
from cifar_dist.errors import UserError
from cifar_dist.evaluation.images_to_predict import open_images_to_predict
from cifar_dist.evaluation.labels_csv import Labels, class_labels, write_submission
from cifar_dist.evaluation.split import Predictor
from cifar_dist.evaluation.trained import Trained, load_model
from cifar_dist.terminal.notice import print_notes
from cifar_dist.terminal.progress import progress


def predict_file(
    engine: Engine,
    trained: Trained,
    source: Path,
    out: Path,
    labels: Labels = "auto",
    poll: Callable[[], None] = lambda: None,
) -> int:
    """Predict every image of ``source`` once, write one row for each in its order, and return their number. Collective.

    Args:
        engine: this process in the job.
        trained: the run and checkpoint; its config has the views to use.
        source: a folder or archive of images, a pickle or npz with ``data`` and ``ids``, or a packed dataset (its
            ``test`` split).
        out: the CSV.
        labels: how it names classes.
        poll: called before each batch; it may raise to stop.

    Raises:
        UserError: a source that cannot be read, has another image shape or repeats an ID, or ``out`` is not writable.
    """
    model, ranks = load_model(engine, trained), engine.ranks
    rank, world_size = ranks.rank, ranks.world_size
    opened = ranks.run_on_all(
        lambda: open_images_to_predict(
            ranks.device, trained, source, rank=rank, world_size=world_size, show=ranks.is_main
        )
    )
    stream, ids = opened.stream, opened.ids
    if world_size > 1:
        check_same_images(hashlib.sha256(f"{opened.content} {ids}".encode()).hexdigest(), source, ranks)
    changes = ranks.gather_objects(opened.changes)
    if ranks.is_main:
        print_notes(opened.notes(changes))
    predictor = Predictor(ranks.device, trained.config, trained.trained_on)
    show = partial(progress, f"predicting {source.name}", show=ranks.is_main)
    tta = trained.config.distinct_tta
    predictions = predictor.predict(model, stream, len(ids), tta, labels=None, poll=poll, show=show)
    named = class_labels(trained.trained_on, predictions.classes.tolist(), labels)

    def write() -> None:
        try:
            write_submission(out, ids, named)
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}); choose another with --out") from None

    ranks.run_on_main(write)
    return len(ids)
