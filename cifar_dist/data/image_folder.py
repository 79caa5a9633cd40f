"""Read images in folders: ``SPLIT/CLASS/FILE.png`` or ``CLASS/FILE.png``, on disk or in an archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import UnidentifiedImageError

from cifar_dist.data.archives import read_members
from cifar_dist.data.image import decode_rgb, resize
from cifar_dist.data.raw import SPLITS, RawDataset, RawSplit, labelled_split
from cifar_dist.errors import UserError
from cifar_dist.formatting import progress

SUFFIXES = (".png", ".jpg", ".jpeg")


def read_image_folder(path: Path, names: Sequence[str], size: int | None = None, *, show: bool = True) -> RawDataset:
    """Decode the images among ``names``, the members of the folder or archive at ``path``.

    A single top-level folder is skipped. Without split folders everything is ``train``. Samples are sorted by name and
    classes alphabetically, so a folder and its archive give the same dataset.

    Args:
        path: folder or archive.
        names: its members, from :func:`~cifar_dist.data.archives.member_names`.
        size: resize every image to this many pixels a side; None keeps the original size.
        show: show a progress bar.

    Raises:
        UserError: no images, an unknown layout, a corrupt image, or images of different sizes without ``size``.
    """
    images = sorted(name for name in names if name.lower().endswith(SUFFIXES))
    locations = _splits_and_classes(path, images)
    classes = tuple(sorted({location[1] for location in locations}))
    label_of = {name: label for label, name in enumerate(classes)}
    row_of = {name: row for row, name in enumerate(images)}

    pixels, left = None, set(images)
    with progress(f"reading {path.name}", len(images), show=show) as advance:
        for name, data in read_members(path, row_of):
            image = decode_image(data, f"{path}: '{name}'", size)
            if pixels is None:
                _require_memory(path, len(images), image.shape)
                pixels, first = np.empty((len(images), *image.shape), np.uint8), name
            if image.shape != pixels.shape[1:]:
                sizes = [f"'{n}' is {s[1]}x{s[0]}" for n, s in ((first, pixels.shape[1:]), (name, image.shape))]
                raise UserError(f"{path}: images differ in size ({', '.join(sizes)}); add --size 32 to resize them all")
            pixels[row_of[name]] = image
            left.discard(name)
            advance(1)
    if pixels is None or left:
        raise UserError(f"{path} changed while it was being read; run the command again")

    splits: dict[str, RawSplit] = {}
    paths: dict[str, tuple[str, ...]] = {}
    labels = np.array([label_of[location[1]] for location in locations], dtype=np.int64)
    for split in SPLITS:
        rows = np.flatnonzero([location[0] == split for location in locations])
        if len(rows):
            splits[split] = labelled_split(pixels[rows[0] : rows[-1] + 1], labels[rows], len(classes), str(path))
            paths[split] = tuple(images[row] for row in rows)
    return RawDataset("image-folder", classes, splits, names=paths)


def decode_image(data: bytes, where: str, size: int | None = None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Decode a PNG or JPEG to RGB, uint8 [height, width, 3].

    Raises:
        UserError: the image is corrupt, too large, or has more than 8 bits per channel; the message begins with
            ``where``.
    """
    try:
        image = decode_rgb(data, ("PNG", "JPEG"))
    except UserError as error:
        raise UserError(f"{where} {error}") from None
    except Exception as error:  # a decoder given arbitrary bytes may raise almost anything
        what = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{where} is not an intact PNG or JPEG image ({what}); replace or remove it") from None
    return np.asarray(image if size is None else resize(image, size))


def _splits_and_classes(path: Path, images: Sequence[str]) -> list[tuple[str, str]]:
    """Return split and class of each image, parsed from its path."""
    if not images:
        raise UserError(
            f"{path} contains neither CIFAR batches nor images; expected the files of a CIFAR archive, or "
            "SPLIT/CLASS/FILE.png or CLASS/FILE.png (or .jpg); for WebDataset tars use: cifar-dist index FOLDER"
        )
    parts = [name.split("/") for name in images]
    if len({name[0] for name in parts}) == 1 and parts[0][0] not in SPLITS and all(len(name) > 2 for name in parts):
        parts = [name[1:] for name in parts]  # skip the single top-level folder
    with_splits = any(name[0] in SPLITS for name in parts)
    for name, shown in zip(parts, images, strict=True):
        if len(name) != 2 + with_splits or (with_splits and name[0] not in SPLITS):
            expected = f"SPLIT/CLASS/FILE, with SPLIT one of {', '.join(SPLITS)}" if with_splits else "CLASS/FILE"
            raise UserError(f"{path}: '{shown}' is not at {expected} like the others; move or remove it")
    return [(name[0], name[1]) if with_splits else ("train", name[0]) for name in parts]


def _require_memory(path: Path, count: int, shape: tuple[int, ...]) -> None:
    needed, free = count * int(np.prod(shape)), psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{path}: {count:,} images of {shape[1]}x{shape[0]} require {needed / 2**30:.1f} GiB of memory, but only "
            f"{free / 2**30:.1f} GiB are free; shrink them with --size N"
        )
