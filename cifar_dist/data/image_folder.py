"""Read images in folders: ``SPLIT/CLASS/FILE.png`` or ``CLASS/FILE.png``, on disk or in an archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.archives import Listing, note_guessed, read_image_files
from cifar_dist.data.image import FORMATS, decode_rgb, decoding_problem, note_changes, resize, resized_to
from cifar_dist.data.image_files import SKIP_OPTION, is_image
from cifar_dist.data.image_layout import find_layout
from cifar_dist.data.memory import require_memory_for_images
from cifar_dist.data.raw import IMAGE_FOLDER, RawDataset, RawSplit, labelled_split
from cifar_dist.data.split_words import SPLITS
from cifar_dist.errors import UserError
from cifar_dist.formatting import list_some


def read_image_folder(
    path: Path, members: Listing, size: int | None = None, *, skip_unusable: bool = False, show: bool = True
) -> RawDataset:
    """Decode the images among ``members`` of the folder or archive at ``path``.

    Splits and classes are those of :func:`~cifar_dist.data.image_layout.find_layout`. Samples are sorted by name, so
    a folder and its archive give the same dataset.

    Args:
        path: folder or archive.
        members: from :func:`~cifar_dist.data.archives.list_members`, with folders.
        size: resize every image to this many pixels a side; None keeps the original size.
        skip_unusable: as for :func:`~cifar_dist.data.image_layout.find_layout`; images that cannot be used are
            skipped, too.
        show: show a progress bar.

    Raises:
        UserError: no images, an unknown layout, a corrupt image, or images of different sizes without ``size``.
    """
    refuse_only_hidden(path, members)
    layout = find_layout(path, members.names, skip_unusable=skip_unusable)
    images, classes = layout.images, layout.class_names
    changes: Counter[str] = Counter()
    pixels, unusable = _decode_all(path, images, size, changes, skip_unusable=skip_unusable, show=show)

    _refuse_lost_splits(path, layout.splits, unusable)
    label_of = {name: label for label, name in enumerate(classes)}
    splits: dict[str, RawSplit] = {}
    paths: dict[str, tuple[str, ...]] = {}
    kept = np.delete(np.arange(len(images)), list(unusable))
    labels = np.array([label_of[name] for name in layout.classes], dtype=np.int64)[kept]
    of_split = np.array(layout.splits)[kept]
    for split in SPLITS:
        rows = np.flatnonzero(of_split == split)
        if len(rows):
            of_rows = slice(rows[0], rows[-1] + 1)  # names are sorted, so a split is consecutive; a view is no copy
            splits[split] = labelled_split(pixels[of_rows], labels[of_rows], len(classes), str(path))
            paths[split] = tuple(images[row] for row in kept[of_rows])
    skipped = {images[row]: why for row, why in sorted(unusable.items())}
    notes = [*note_guessed(path, members), *note_hidden(members), *_notes(skipped, changes, len(images))]
    return RawDataset(IMAGE_FOLDER, classes, splits, (*layout.notes, *notes), paths, layout.tables)


def _refuse_lost_splits(path: Path, splits: Sequence[str], unusable: Mapping[int, str]) -> None:
    """Refuse to skip all images of a split, whose ``splits`` are by position, as are those that are ``unusable``."""
    kept = {split for row, split in enumerate(splits) if row not in unusable}
    for row, why in sorted(unusable.items()):
        if splits[row] not in kept:
            none = f"{path}: none of the {splits.count(splits[row]):,} images of {splits[row]} can be used; the first"
            raise UserError(f"{none} {why}; create or download them again, or remove that folder")


def _decode_all(
    path: Path, images: Sequence[str], size: int | None, changes: Counter[str], *, skip_unusable: bool, show: bool
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Decode images of one shape.

    Args:
        path: the folder or archive.
        images: names of its images.
        size: resize every image to this many pixels a side; None keeps the original size.
        changes: counts what was done to the stored pixels.
        skip_unusable: skip images that cannot be used instead of refusing them.
        show: show a progress bar.

    Returns:
        The pixels of those that can be used, uint8 [images, height, width, 3], and for the position of each other one
        the reason.
    """
    unusable: dict[int, str] = {}
    pixels = None
    for row, where, data in read_image_files(path, images, show=show):
        try:
            image = decode_image(data, where, size, changes)
        except UserError as error:
            if not skip_unusable:
                raise UserError(f"{error}, or skip it with {SKIP_OPTION}") from None
            unusable[row] = str(error).removeprefix(f"{where} ").partition("; ")[0]
            continue
        if pixels is None:
            require_memory_for_images(str(path), len(images), image.shape, "shrink them with --size N")
            pixels, first = np.empty((len(images), *image.shape), np.uint8), row
        if image.shape != pixels.shape[1:]:
            sizes = [f"'{images[n]}' is {s[1]}x{s[0]}" for n, s in ((first, pixels.shape[1:]), (row, image.shape))]
            raise UserError(f"{path}: images differ in size ({', '.join(sizes)}); add --size 32 to resize them all")
        pixels[row] = image
    if pixels is None:
        none = f"{path}: none of its {len(images):,} images can be used; the first {unusable[0]}"
        raise UserError(f"{none}; create or download it again")
    used = np.delete(np.arange(len(images)), list(unusable))
    for to, kept in enumerate(used if unusable else ()):
        pixels[to] = pixels[kept]  # in place: there may be no memory for a copy
    return pixels[: len(used)], unusable


def decode_image(
    data: bytes,
    where: str,
    size: int | None = None,
    changes: Counter[str] | None = None,
    *,
    of_any_size: bool = False,
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Decode an image file to RGB as a viewer shows it, uint8 [height, width, 3].

    Args:
        data: the bytes of the file.
        where: prefix of error messages.
        size: resize the image to this many pixels a side; None keeps the original size.
        changes: counts what was done to the stored pixels.
        of_any_size: accept as large an image as one that is resized, for a caller that says what to do with it.

    Raises:
        UserError: the image is corrupt, too large, or has more than 8 bits per channel.
    """
    try:
        image, changed = decode_rgb(data, FORMATS, to_be_resized=of_any_size or size is not None)
        if size is not None and image.size != (size, size):
            image, changed = resize(image, size), (*changed, resized_to(size))
        if changes is not None:
            changes.update(changed)
        return np.asarray(image)
    except UserError as error:
        raise UserError(f"{where} {error}") from None
    except Exception as error:  # a decoder given arbitrary bytes may raise almost anything
        what = decoding_problem(error)
        raise UserError(
            f"{where} is not an intact PNG, JPEG, WebP, BMP or GIF image ({what}); replace or remove it"
        ) from None


def refuse_only_hidden(path: Path, members: Listing) -> None:
    """Refuse a folder or archive in which all files are hidden, and some of them are images."""
    hidden = _hidden_images(members)
    if hidden and all(name.endswith("/") for name in members.names):
        raise UserError(f"{path} contains only hidden images: {list_some(hidden)}; rename what begins with a dot")


def note_hidden(members: Listing) -> list[str]:
    """Note the images that are not read because they are hidden; no line without any."""
    hidden = _hidden_images(members)
    return [f"passed over hidden images: {list_some(hidden)}"] if hidden else []


def _hidden_images(members: Listing) -> list[str]:
    return list(filter(is_image, members.hidden))


def _notes(skipped: Mapping[str, str], changes: Counter[str], total: int) -> list[str]:
    """Note the skipped images, with the reason of the first, and what was changed."""
    names, reasons = list(skipped), list(skipped.values())
    note = f"skipped: {len(skipped):,} of {total:,} images that cannot be used: {list_some(names)}"
    return [*([f"{note}; the first {reasons[0]}"] if skipped else []), *note_changes(changes, total)]
