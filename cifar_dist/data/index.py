"""A manifest for WebDataset tars that were made elsewhere. The tars stay as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.image import Codec, decode
from cifar_dist.data.manifest import FILE_NAME, INDEXED, SHARD_NAME, Manifest, Shard
from cifar_dist.data.raw import SPLITS
from cifar_dist.data.statistics import channel_statistics, pixel_counts
from cifar_dist.data.tar import index_tar
from cifar_dist.errors import UserError
from cifar_dist.formatting import progress

_SPLIT_OF: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_ONE_FORM = "one size and format is needed: unpack them into CLASS/FILE, and cifar-dist pack FOLDER OUT --size 32"


class _Form(NamedTuple):
    """What all images of a dataset have in common."""

    codec: Codec
    height: int
    width: int

    def __str__(self) -> str:
        return f".{self.codec} of {self.width}x{self.height}"


def index(folder: str | Path, *, classes: Sequence[str] = (), show: bool = True) -> Manifest:
    """Write ``manifest.json`` beside the tars of a folder.

    Their samples are ``KEY.png`` (jpg, jpeg, webp or npy) and ``KEY.cls``; other members are passed over. The split of
    a tar is the word train, val or test in its name, or in the name of its folder; without such words all is train.
    Every image is decoded once, for its size and for the mean and standard deviation of the first split.

    Args:
        folder: where the tars lie, or where the folders lie that hold them.
        classes: names in label order; without them classes are called by their numbers.
        show: show progress on stderr.

    Raises:
        UserError: no tars, tars that cannot be trained on, or images of more than one size or format.
    """
    root = Path(folder)
    _require_unpacked(root)
    tars = _tars(root)
    shards: dict[str, list[Shard]] = {split: [] for split in tars}
    first = next(iter(tars))  # train, unless there is none
    counts = np.zeros((3, 256), dtype=np.int64)
    form: _Form | None = None
    with progress(f"indexing {root.name}", sum(map(len, tars.values())), "tars", show=show) as advance:
        for split, names in tars.items():
            for name in names:
                shard, codec = index_tar(root, name)
                images = _images(root / name, shard, codec)
                here = _Form(codec, images.shape[1], images.shape[2])
                form = form or here
                if here != form:
                    raise UserError(f"{root}: {tars[first][0]} holds {form}, {name} holds {here}; {_ONE_FORM}")
                if split == first:
                    counts += pixel_counts(images)
                shards[split].append(shard)
                advance(1)
    assert form is not None
    mean, std = channel_statistics(counts)
    dataset = root.resolve().name
    manifest = Manifest(
        name=dataset,
        classes=_classes(root, shards, classes),
        shape=(form.height, form.width, 3),
        codec=form.codec,
        source={"kind": INDEXED, "name": dataset},
        mean=mean,
        std=std,
        splits={split: tuple(many) for split, many in shards.items()},
        root=root,
    )
    try:
        manifest.save(root)
    except OSError as error:
        raise UserError(f"{root / FILE_NAME} cannot be written: {error.strerror or error}") from None
    return manifest


def _require_unpacked(root: Path) -> None:
    """What pack wrote knows more than its tars say, and is left alone."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; name the one that holds the tars")
    if (root / FILE_NAME).exists() and Manifest.load(root).source.get("kind") != INDEXED:
        raise UserError(f"{root} is packed already; look at it with: cifar-dist verify {root}")


def _tars(root: Path) -> dict[str, list[str]]:
    """The tars of each split there is, in the order train, val, test; 2.tar comes before 10.tar."""
    found = [path.relative_to(root).as_posix() for path in (*root.glob("[!.]*.tar"), *root.glob("[!.]*/[!.]*.tar"))]
    if not found:
        raise UserError(f"{root} holds no .tar, and neither do the folders in it; cifar-dist pack takes images")
    split_of = {name: _split(root, name) for name in found}
    stray = sorted(name for name in found if split_of[name] is None)
    if stray and len(stray) < len(found):
        raise UserError(f"{root / stray[0]} says no split and others do; rename it as train-{Path(stray[0]).name}")
    names = sorted(found, key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(20), name))
    tars = {split: [name for name in names if (split_of[name] or "train") == split] for split in SPLITS}
    return {split: many for split, many in tars.items() if many}


def _split(root: Path, name: str) -> str | None:
    """The split that a tar's name says; None where it says none."""
    if not SHARD_NAME.fullmatch(name):
        raise UserError(f"{root / name}: a name may have letters, digits, '.', '_' and '-'; rename it")
    splits = {_SPLIT_OF[word] for word in re.split("[^a-z]+", name.lower()) if word in _SPLIT_OF}
    if len(splits) > 1:
        raise UserError(f"{root / name} says {' and '.join(sorted(splits))}; rename it to say one split")
    return next(iter(splits), None)


def _images(path: Path, shard: Shard, codec: Codec) -> NDArray[np.uint8]:
    """All images of a tar, uint8 [samples, height, width, 3].

    Raises:
        UserError: one that cannot be decoded, or has another size than the first.
    """
    data = path.read_bytes()

    def image(row: int) -> NDArray[np.uint8]:
        offset, size = int(shard.image_offset[row]), int(shard.image_size[row])
        where = f"{path}: '{shard.keys[row]}.{codec}'"
        try:
            array = decode(data[offset : offset + size], codec)
        except Exception as error:  # a decoder fed with anything raises almost anything
            raise UserError(f"{where} cannot be decoded ({str(error)[:100]!a}); mend it or take it out") from None
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise UserError(f"{where} is {array.dtype} {array.shape}; expected uint8 [height, width, 3]")
        return array

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(image, range(shard.samples)))
    for key, other in zip(shard.keys, images, strict=True):
        if other.shape != images[0].shape:
            shown = [f"'{k}' is {i.shape[1]}x{i.shape[0]}" for k, i in ((shard.keys[0], images[0]), (key, other))]
            raise UserError(f"{path}: {' and '.join(shown)}; {_ONE_FORM}")
    return np.stack(images)


def _classes(root: Path, shards: dict[str, list[Shard]], names: Sequence[str]) -> tuple[str, ...]:
    largest = max(int(shard.labels.max()) for many in shards.values() for shard in many)
    if names and len(names) <= largest:
        raise UserError(f"{root} has the label {largest} and {len(names)} classes are named; name {largest + 1}")
    return tuple(names) or tuple(map(str, range(largest + 1)))
