"""Predict a file of unlabelled images into an ``ID,Labels`` CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_dist.data.archives import SUFFIXES as ARCHIVES
from cifar_dist.data.archives import member_names, read_members
from cifar_dist.data.batches import Images
from cifar_dist.data.image_folder import decode_image
from cifar_dist.data.image_layout import SUFFIXES
from cifar_dist.data.manifest import FILE_NAME, Manifest
from cifar_dist.data.unlabelled import read_unlabelled
from cifar_dist.distributed.engine import Engine
from cifar_dist.errors import UserError
from cifar_dist.evaluation.predict import Stream
from cifar_dist.evaluation.source_terms import Labels, class_labels, ids_of_names, natural_order, sample_ids
from cifar_dist.evaluation.split import Predictor
from cifar_dist.evaluation.submission import write_submission
from cifar_dist.evaluation.trained import Trained, load_model
from cifar_dist.formatting import list_some
from cifar_dist.terminal.progress import progress


def predict_file(engine: Engine, trained: Trained, source: Path, tta: str, out: Path, labels: Labels = "auto") -> int:
    """Predict every image of ``source`` once, write one row for each in its order, and return their number. Collective.

    Args:
        engine: this process in the job.
        trained: the run and checkpoint.
        source: a folder or archive of images, a pickle or npz with ``data`` and ``ids``, or a packed dataset (its
            ``test`` split).
        tta: see ``eval.tta``.
        out: the CSV.
        labels: how it names classes.

    Raises:
        UserError: a source that cannot be read, has another image shape or repeats an ID, or ``out`` is not writable.
    """
    model, ranks = load_model(engine, trained), engine.ranks
    stream, ids, shape = ranks.run_on_all(lambda: _open(ranks.device, trained, source))
    if shape != trained.trained_on.shape:
        raise UserError(f"images of {source} are {shape}; the run was trained on {trained.trained_on.shape}")
    predictor = Predictor(ranks.device, trained.config, trained.trained_on)
    show = partial(progress, f"predicting {source.name}", show=ranks.is_main)
    predictions = predictor.predict(model, stream, len(ids), tta, show=show)
    named = class_labels(trained.trained_on, predictions.classes.tolist(), labels)
    ranks.run_on_main(lambda: write_submission(out, ids, named))
    return len(ids)


def _open(
    device: torch.device, trained: Trained, source: Path
) -> tuple[Stream, list[int] | list[str], tuple[int, int, int]]:
    if (source / FILE_NAME).is_file():
        data = Manifest.load(source)
        return Images(data, "test", trained.config.data, device).stream, sample_ids(data, "test"), data.shape
    if source.is_dir() or source.suffix.lower() in ARCHIVES:
        names, images = read_images(source, trained.trained_on.source.get("size"))
        ids: list[int] | list[str] = ids_of_names(names)
    else:
        unlabelled = read_unlabelled(source)
        ids, images = unlabelled.ids.tolist(), unlabelled.images
    pixels = torch.from_numpy(images)

    def stream(requests: Sequence[Tensor]) -> Iterator[Tensor]:
        return (pixels[wanted].to(device) for wanted in requests)

    height, width, channels = images.shape[1:]
    return stream, ids, (height, width, channels)


def read_images(source: Path, size: int | None) -> tuple[list[str], NDArray[np.uint8]]:
    """Read the image files of a folder or archive, ``2.png`` before ``10.png``, resized as the training images were.

    Raises:
        UserError: there are none, other files lie among them, a name is not UTF-8, or they differ in size.
    """
    found = sorted(member_names(source), key=natural_order)
    names = [name for name in found if name.lower().endswith(SUFFIXES)]
    if not names:
        raise UserError(f"{source} has no images ({', '.join(SUFFIXES)}) to predict")
    if len(names) < len(found):
        other = next(name for name in found if not name.lower().endswith(SUFFIXES))
        count = len(found) - len(names)
        are, them = ("is not an image", "it") if count == 1 else ("are not images", "them")
        raise UserError(f"{source}: {count} of {len(found)} files {are} that can be read: '{other}'; move {them}")
    no_text = [name for name in names if name != name.encode(errors="replace").decode()]
    if no_text:
        raise UserError(f"{source}: names that are not UTF-8 cannot be IDs: {list_some(no_text)}; rename the files")
    images = {name: decode_image(data, f"{source}: '{name}'", size) for name, data in read_members(source, names)}
    for name in names:
        if images[name].shape != images[names[0]].shape:
            raise UserError(
                f"{source}: '{name}' differs in size from '{names[0]}'; resize them to the training images'"
            )
    return names, np.stack([images[name] for name in names])
