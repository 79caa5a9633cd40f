"""Open images without labels, from any source, to predict them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_dist.data.archives import Listing, list_members, note_guessed, read_image_files, refuse_archives_in
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
from cifar_dist.data.unlabelled import read_unlabelled
from cifar_dist.errors import UserError, quoted
from cifar_dist.evaluation.data_matching import labels_as_trained, require_packed_shape, require_shape
from cifar_dist.evaluation.labels_csv import ids_of_names, natural_order, sample_ids
from cifar_dist.evaluation.predict import Stream, batches_of
from cifar_dist.evaluation.trained import Trained
from cifar_dist.launch.launched import local_processes

_DIGEST_BYTES = 16


class ImagesToPredict(NamedTuple):
    """Images without labels, from any source, of which a process of several holds those that it predicts.

    Attributes:
        stream: returns them by position.
        ids: ID of each.
        passed_over: what was not read, one line each.
        changes: counts what was done to the images that this process predicts.
        content: a hash of all images, without their IDs; empty for one process.
    """

    stream: Stream
    ids: list[int] | list[str]
    passed_over: list[str]
    changes: Counter[str]
    content: str

    def notes(self, changes: Iterable[Counter[str]]) -> list[str]:
        """Return what was passed over or changed, one line each, from the ``changes`` of all processes."""
        return [*self.passed_over, *note_changes(sum(changes, Counter[str]()), len(self.ids))]


class _Share:
    """Which images a process predicts, and which it holds.

    Attributes:
        predicts: positions, bool [samples].
        holds: positions, int64, rising: also of one that it infers and drops.
    """

    def __init__(self, count: int, batch_size: int, rank: int, world_size: int) -> None:
        requests, predicted = batches_of(rank, world_size, count, batch_size)
        self.predicts = np.zeros(count, np.bool_)
        for batch in requests[:predicted]:
            self.predicts[batch.numpy()] = True
        held = self.predicts.copy()
        for batch in requests[predicted:]:
            held[batch.numpy()] = True
        self.holds: NDArray[np.int64] = np.flatnonzero(held)

    def row(self, position: int) -> int | None:
        """Return the row of an image among those held; None if it is not."""
        row = int(np.searchsorted(self.holds, position))
        return row if row < len(self.holds) and self.holds[row] == position else None


def open_images_to_predict(
    device: torch.device, trained: Trained, source: Path, *, rank: int = 0, world_size: int = 1, show: bool = True
) -> ImagesToPredict:
    """Open a folder or archive of images, a pickle or npz with ``data`` and ``ids``, or a packed dataset.

    Args:
        device: of the images.
        trained: the run, whose ``eval.batch_size`` decides which images a rank predicts.
        source: its path.
        rank, world_size: of this process, which holds no other images than its own after this call.
        show: show the progress.

    Raises:
        UserError: it cannot be read, or its images have another size than those of the run's training.
    """
    if is_dataset(source):
        return _open_packed(device, trained, Manifest.load(source))

    def share_of(count: int) -> _Share:
        return _Share(count, trained.config.eval.batch_size, rank, world_size)

    if source.is_dir() or source.name.lower().endswith(ARCHIVE_SUFFIXES):
        held = _read_images(source, trained, share_of, compares=world_size > 1, show=show)
    else:
        held = _read_arrays(source, trained.trained_on, share_of, compares=world_size > 1)
    positions, pixels = torch.from_numpy(held.positions), torch.from_numpy(held.images)

    def stream(requests: Sequence[Tensor]) -> Iterator[Tensor]:
        return (pixels[torch.searchsorted(positions, wanted)].to(device) for wanted in requests)

    return ImagesToPredict(stream, held.ids, held.passed_over, held.changes, held.content)


class _Held(NamedTuple):
    """The images that a process holds, uint8 [held, height, width, 3], and what :class:`ImagesToPredict` has."""

    positions: NDArray[np.int64]
    images: NDArray[np.uint8]
    ids: list[int] | list[str]
    passed_over: list[str]
    changes: Counter[str]
    content: str


def _read_arrays(source: Path, trained_on: Manifest, share_of: Callable[[int], _Share], *, compares: bool) -> _Held:
    """Read a pickle or npz, and drop the images of other processes."""
    unlabelled = read_unlabelled(source)
    share = share_of(len(unlabelled.images))
    content = hashlib.sha256(unlabelled.images.data).hexdigest() if compares else ""
    stored = unlabelled.images[share.holds] if compares else unlabelled.images
    images = _resized(stored, source, trained_on)
    is_resized = images is not stored
    changes = Counter({resized_to(images.shape[1]): int(share.predicts.sum())} if is_resized else {})
    require_shape(f"{source}: data", images.shape[1:], trained_on)
    return _Held(share.holds, images, unlabelled.ids.tolist(), [*unlabelled.notes], changes, content)


def _open_packed(device: torch.device, trained: Trained, data: Manifest) -> ImagesToPredict:
    if "test" not in data.splits:
        split = next(iter(data.splits))
        run = quoted(trained.run.path)
        remedy = f"predict the folder of its images: cifar-dist predict {run} FOLDER --out FILE.csv"
        if _can_evaluate(data, split, trained.trained_on):
            remedy = f"predict another split with: cifar-dist evaluate {run} --data {quoted(data.root)} --split {split}"
        raise UserError(f"{data.root} has no split 'test' to predict, but {', '.join(data.splits)}; {remedy}")
    require_packed_shape(data, trained.trained_on)
    once = replace(trained.config.data, resident_mb=0)  # each image is asked for once, and by one process
    stream = Images(data, "test", once, device).stream
    return ImagesToPredict(stream, sample_ids(data, "test"), [], Counter(), data.fingerprint)


def _can_evaluate(data: Manifest, split: str, trained_on: Manifest) -> bool:
    try:
        require_packed_shape(data, trained_on)
        labels_as_trained(data, split, trained_on)
    except UserError:
        return False
    return True


def _resized(images: NDArray[np.uint8], source: Path, trained_on: Manifest) -> NDArray[np.uint8]:
    """Return images resized as the training images were, if they were."""
    size = trained_on.resized_to
    if size is None:
        return images
    return resize_images(images, size, str(source), _fewer_at_a_time(), copies=local_processes())


def _fewer_at_a_time() -> str:
    return "predict fewer images at a time" + ", or on fewer processes of a machine" * (local_processes() > 1)


def _read_images(
    source: Path, trained: Trained, share_of: Callable[[int], _Share], *, compares: bool, show: bool
) -> _Held:
    """Read the image files of a folder or archive, ``2.png`` before ``10.png``, resized as the training images were.

    Each process reads all files, as it must of a compressed archive, and decodes its own.

    Raises:
        UserError: there are none, some are in a format that is not read, a name is not UTF-8, one has another size
            than the training images, or they do not fit in the memory.
    """
    trained_on = trained.trained_on
    names, passed_over = names_of_images(source, list_members(source, show=show), quoted(trained.run.path))
    changes: Counter[str] = Counter()
    size = trained_on.resized_to
    shape, copies, share = trained_on.shape, local_processes(), share_of(len(names))
    require_memory_for_images(str(source), len(share.holds), shape, "predict fewer images at a time", copies=copies)
    images = np.empty((len(share.holds), *shape), np.uint8)
    digests = np.zeros((len(names) if compares else 0, _DIGEST_BYTES), np.uint8)
    for position, where, data in read_image_files(source, names, show=show):
        if compares:
            digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
            digests[position] = np.frombuffer(digest, np.uint8)
        row = share.row(position)
        if row is not None:
            counted = changes if share.predicts[position] else None
            image = decode_image(data, where, size, counted, of_any_size=True)
            require_shape(where, image.shape, trained_on)
            images[row] = image
    content = hashlib.sha256(digests.data).hexdigest() if compares else ""
    return _Held(share.holds, images, ids_of_names(names), passed_over, changes, content)


def names_of_images(source: Path, members: Listing, run: str = "RUN") -> tuple[list[str], list[str]]:
    """Return the names of the images to predict in a folder or archive, in natural order, and notes on other files.

    Args:
        source: the folder or archive.
        members: of it.
        run: the word for it in a command that predicts them.

    Raises:
        UserError: there are none, or some are in a format that is not read.
    """
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
    others = [name for name in found if not is_image(name)]
    return names, [*note_guessed(source, members), *note_hidden(members), *note_not_images(others)]
