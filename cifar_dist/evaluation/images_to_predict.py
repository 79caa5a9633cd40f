"""Open images without labels, from any source, to predict them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_dist.data.archives import list_members, note_guessed, read_image_files, refuse_archives_in
from cifar_dist.data.arrays import resize_images
from cifar_dist.data.batches import Images
from cifar_dist.data.dataset_folder import is_dataset, refuse_part
from cifar_dist.data.image import note_changes, resized_to
from cifar_dist.data.image_files import (
    IMAGE_SUFFIXES,
    describe_unreadable,
    is_image,
    note_not_images,
    unreadable_images,
)
from cifar_dist.data.image_folder import decode_image, note_hidden, refuse_only_hidden
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.memory import require_memory_for_images
from cifar_dist.data.source_suffixes import ARCHIVE_SUFFIXES
from cifar_dist.data.unlabelled import Unlabelled, read_unlabelled
from cifar_dist.errors import UserError, quoted
from cifar_dist.evaluation.data_matching import labels_as_trained, require_packed_shape, require_shape
from cifar_dist.evaluation.labels_csv import ids_of_names, natural_order, sample_ids
from cifar_dist.evaluation.predict import Stream
from cifar_dist.evaluation.trained import Trained
from cifar_dist.launch.launched import local_processes


class ImagesToPredict(NamedTuple):
    """Images without labels, from any source.

    Attributes:
        stream: returns them by position.
        ids: ID of each.
        notes: what was passed over or changed when they were read, one line each.
        hashed: returns a hash of the images, without their IDs.
    """

    stream: Stream
    ids: list[int] | list[str]
    notes: list[str]
    hashed: Callable[[], str]


def open_images_to_predict(
    device: torch.device, trained: Trained, source: Path, *, show: bool = True
) -> ImagesToPredict:
    """Open a folder or archive of images, a pickle or npz with ``data`` and ``ids``, or a packed dataset.

    Raises:
        UserError: it cannot be read, or its images have another size than those of the run's training.
    """
    trained_on = trained.trained_on
    if is_dataset(source):
        return _open_packed(device, trained, Manifest.load(source))
    if source.is_dir() or source.name.lower().endswith(ARCHIVE_SUFFIXES):
        names, images, notes = _read_images(source, trained, show=show)
        ids: list[int] | list[str] = ids_of_names(names)
    else:
        unlabelled = read_unlabelled(source)
        ids, images = unlabelled.ids.tolist(), _resized(unlabelled, source, trained_on)
        notes = [*unlabelled.notes]
        if images is not unlabelled.images:
            notes += note_changes(Counter({resized_to(images.shape[1]): len(images)}), len(images))
        require_shape(f"{source}: data", images.shape[1:], trained_on)
    pixels = torch.from_numpy(images)

    def stream(requests: Sequence[Tensor]) -> Iterator[Tensor]:
        return (pixels[wanted].to(device) for wanted in requests)

    return ImagesToPredict(stream, ids, notes, lambda: hashlib.sha256(images.data).hexdigest())


def _open_packed(device: torch.device, trained: Trained, data: Manifest) -> ImagesToPredict:
    if "test" not in data.splits:
        split = next(iter(data.splits))
        run = quoted(trained.run.path)
        remedy = f"predict the folder of its images: cifar-dist predict {run} FOLDER --out FILE.csv"
        if _can_evaluate(data, split, trained.trained_on):
            remedy = f"predict another split with: cifar-dist evaluate {run} --data {quoted(data.root)} --split {split}"
        raise UserError(f"{data.root} has no split 'test' to predict, but {', '.join(data.splits)}; {remedy}")
    require_packed_shape(data, trained.trained_on)
    stream = Images(data, "test", trained.config.data, device).stream
    return ImagesToPredict(stream, sample_ids(data, "test"), [], lambda: data.fingerprint)


def _can_evaluate(data: Manifest, split: str, trained_on: Manifest) -> bool:
    try:
        require_packed_shape(data, trained_on)
        labels_as_trained(data, split, trained_on)
    except UserError:
        return False
    return True


def _resized(unlabelled: Unlabelled, source: Path, trained_on: Manifest) -> NDArray[np.uint8]:
    """Return the images resized as the training images were, if they were."""
    size = trained_on.resized_to
    if size is None:
        return unlabelled.images
    return resize_images(unlabelled.images, size, str(source), _fewer_at_a_time(), copies=local_processes())


def _fewer_at_a_time() -> str:
    return "predict fewer images at a time" + ", or on fewer processes of a machine" * (local_processes() > 1)


def _read_images(source: Path, trained: Trained, *, show: bool) -> tuple[list[str], NDArray[np.uint8], list[str]]:
    """Read the image files of a folder or archive, ``2.png`` before ``10.png``, resized as the training images were.

    Returns:
        Their paths in the folder or archive, the images, uint8 [samples, height, width, 3], and the notes of
        :class:`ImagesToPredict`.

    Raises:
        UserError: there are none, some are in a format that is not read, a name is not UTF-8, one has another size
            than the training images, or they do not fit in the memory.
    """
    run, trained_on = quoted(trained.run.path), trained.trained_on
    members = list_members(source, show=show)
    found = sorted(members.names, key=natural_order)
    names = list(filter(is_image, found))
    if len(names) < len(found):
        refuse_part(source)
    if unreadable := unreadable_images(found):
        what, remedy = describe_unreadable(unreadable)
        raise UserError(f"{source}: {what}; {remedy}")
    refuse_only_hidden(source, members)
    if not names:
        refuse_archives_in(source, found, lambda archive: f"cifar-dist predict {run} {archive} --out FILE.csv")
        raise UserError(f"{source} has no images ({', '.join(IMAGE_SUFFIXES)}) to predict")
    changes: Counter[str] = Counter()
    size = trained_on.resized_to
    shape, copies = trained_on.shape, local_processes()
    require_memory_for_images(str(source), len(names), shape, _fewer_at_a_time(), copies=copies)
    images = np.empty((len(names), *trained_on.shape), np.uint8)
    for row, where, data in read_image_files(source, names, show=show):
        image = decode_image(data, where, size, changes, of_any_size=True)
        require_shape(where, image.shape, trained_on)
        images[row] = image
    others = [name for name in found if not is_image(name)]
    passed_over = [*note_guessed(source, members), *note_hidden(members), *note_not_images(others)]
    return names, images, [*passed_over, *note_changes(changes, len(names))]
