"""Images in folders: ``SPLIT/CLASS/FILE.png`` or ``CLASS/FILE.png``, on disk or in an archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import UnidentifiedImageError

from cifar_dist.data.archives import read_members
from cifar_dist.data.image import decode_rgb, resize
from cifar_dist.data.raw import SPLITS, RawDataset, RawSplit, labelled
from cifar_dist.errors import UserError
from cifar_dist.formatting import progress

SUFFIXES = (".png", ".jpg", ".jpeg")


def read_image_folder(path: Path, names: Sequence[str], size: int | None = None, *, show: bool = True) -> RawDataset:
    """Decode the images among ``names``, the members of the folder or archive at ``path``.

    A folder around everything is looked through. Without split folders everything is ``train``. Samples come in
    the order of their names and classes in alphabetical order, so a folder and its archive give the same dataset.

    Args:
        path: folder or archive.
        names: what :func:`~cifar_dist.data.archives.member_names` says it holds.
        size: side in pixels that every image is resized to; None takes them as they are.
        show: show a progress bar.

    Raises:
        UserError: no images, another layout, a broken image, or images that differ in size and no ``size``.
    """
    images = sorted(name for name in names if name.lower().endswith(SUFFIXES))
    places = _places(path, images)
    classes = tuple(sorted({place[1] for place in places}))
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
        raise UserError(f"{path} changed while it was read; start again")

    splits: dict[str, RawSplit] = {}
    labels = np.array([label_of[place[1]] for place in places], dtype=np.int64)
    for split in SPLITS:
        rows = np.flatnonzero([place[0] == split for place in places])
        if len(rows):
            splits[split] = labelled(pixels[rows[0] : rows[-1] + 1], labels[rows], len(classes), str(path))
    return RawDataset("image-folder", classes, splits)


def decode_image(data: bytes, where: str, size: int | None = None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A PNG or JPEG as RGB, uint8 [height, width, 3].

    Raises:
        UserError: that begins with ``where``: no such image, too large, or of more than 8 bits a channel.
    """
    try:
        image = decode_rgb(data, ("PNG", "JPEG"))
    except UserError as error:
        raise UserError(f"{where} {error}") from None
    except Exception as error:  # a decoder fed with anything raises almost anything
        what = "of another format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{where} is not a whole PNG or JPEG image ({what}); mend it or take it out") from None
    return np.asarray(image if size is None else resize(image, size))


def _places(path: Path, images: Sequence[str]) -> list[tuple[str, str]]:
    """Split and class of each image."""
    if not images:
        raise UserError(
            f"{path} holds no CIFAR batches and no images; expected SPLIT/CLASS/FILE.png or CLASS/FILE.png (or .jpg), "
            "or what the CIFAR archives hold; WebDataset tars: cifar-dist index FOLDER"
        )
    parts = [name.split("/") for name in images]
    if len({name[0] for name in parts}) == 1 and parts[0][0] not in SPLITS and all(len(name) > 2 for name in parts):
        parts = [name[1:] for name in parts]  # one folder around everything
    with_splits = any(name[0] in SPLITS for name in parts)
    for name, shown in zip(parts, images, strict=True):
        if len(name) != 2 + with_splits or (with_splits and name[0] not in SPLITS):
            expected = f"SPLIT/CLASS/FILE, SPLIT one of {', '.join(SPLITS)}" if with_splits else "CLASS/FILE"
            raise UserError(f"{path}: '{shown}' does not lie at {expected} as the others do; move it or take it out")
    return [(name[0], name[1]) if with_splits else ("train", name[0]) for name in parts]


def _require_memory(path: Path, count: int, shape: tuple[int, ...]) -> None:
    needed, free = count * int(np.prod(shape)), psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{path}: {count:,} images of {shape[1]}x{shape[0]} take {needed / 2**30:.1f} GiB of memory and "
            f"{free / 2**30:.1f} are free; add --size N to make them smaller"
        )
