"""Write a manifest for existing WebDataset tars, without changing them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.archives import hidden_names, require_utf8_name
from cifar_dist.data.class_check import note_missing_classes
from cifar_dist.data.duplicates import HashedSplit, hash_images, note_equal_digests
from cifar_dist.data.image import Codec, decode_with_changes, decoding_problem, note_changes
from cifar_dist.data.manifest import (
    FILE_NAME,
    INDEXED,
    SHARD_NAME,
    Manifest,
    Shard,
    describe_datasets_inside,
    find_tars,
    is_dataset,
    refuse_run,
)
from cifar_dist.data.raw import SPLIT_WORDS, SPLITS
from cifar_dist.data.statistics import channel_statistics, pixel_counts
from cifar_dist.data.tar import index_tar
from cifar_dist.errors import UserError, quoted
from cifar_dist.formatting import list_some, print_notes
from cifar_dist.terminal.progress import progress

_COMPRESSED_TAR = re.compile(r"\.(tar\.[a-z0-9]+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_COMPRESSED: Final = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "bzip2": re.compile(rb"BZh[1-9]1AY&SY"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
}
"""What a file begins with, by the program that compressed it."""
_REPACK_HINT = (
    "they must have one size and format; unpack them to CLASS/FILE, then: cifar-dist pack FOLDER OUT --size 32"
)
_WITHOUT: Final = {
    "train": "the dataset cannot be trained on",
    "val": "training will refuse the dataset; add the labels, or name the tars 'test'",
    "test": "a run ends with predictions of it, but no accuracy",
}
"""What follows if a split has no labels."""


class _ImageFormat(NamedTuple):
    """Codec and size that all images of a dataset share."""

    codec: Codec
    height: int
    width: int

    def __str__(self) -> str:
        return f".{self.codec} of {self.width}x{self.height}"


def index(folder: str | Path, *, classes: Sequence[str] = (), show: bool = True) -> Manifest:
    """Write ``manifest.json`` for the tars in a folder.

    A sample is ``KEY.png`` (jpg, jpeg, webp or npy) and ``KEY.cls``; other members are ignored. The split of a tar is
    the word train, val or test in its name or its folder's name; if no tar has such a word, all are train. Every image
    is decoded once, to check its size and to compute the mean and standard deviation of the first split.

    Args:
        folder: contains the tars, directly or in subfolders.
        classes: class names in label order; without them those of the former manifest are kept, or classes are named
            by number.
        show: show progress on stderr.

    Raises:
        UserError: no tars, a tar that cannot be used for training, images of more than one size or format, or labels of
            only some samples of a split.
    """
    root = Path(folder)
    former = _read_former_manifest(root)
    tars = _find_tars(root)
    shards: dict[str, list[Shard]] = {split: [] for split in tars}
    first = next(iter(tars))  # train, if it exists
    counts = np.zeros((3, 256), dtype=np.int64)
    digests: dict[str, list[bytes]] = {split: [] for split in tars}
    common: _ImageFormat | None = None
    passed_over, changes = Counter[str](), Counter[str]()
    with progress(f"indexing {root.name}", sum(map(len, tars.values())), "tars", show=show) as advance:
        for split, names in tars.items():
            for name in names:
                shard, codec, others = index_tar(root, name)
                images = _decode_images(root / name, shard, codec, changes)
                passed_over += others
                here = _ImageFormat(codec, images.shape[1], images.shape[2])
                common = common or here
                if here != common:
                    raise UserError(f"{root}: {tars[first][0]} holds {common}, {name} holds {here}; {_REPACK_HINT}")
                if split == first:
                    counts += pixel_counts(images)
                shards[split].append(shard)
                digests[split] += hash_images(images)
                advance(1)
    assert common is not None
    mean, std = channel_statistics(counts)
    class_names, kept = _class_names(root, shards, classes, former)
    dataset = root.resolve().name
    manifest = Manifest(
        name=dataset,
        classes=class_names,
        shape=(common.height, common.width, 3),
        codec=common.codec,
        source={"kind": INDEXED, "name": dataset},
        mean=mean,
        std=std,
        splits={split: tuple(many) for split, many in shards.items()},
        root=root,
    )
    notes = [*kept, *_note_labels(manifest), *_note_duplicates(manifest, digests)]
    try:
        manifest.save(root)
    except OSError as error:
        raise UserError(f"{root / FILE_NAME} cannot be written: {error.strerror or error}") from None
    if show:
        samples = sum(manifest.samples(split) for split in manifest.splits)
        print_notes([*notes, *_note_passed_over(root, passed_over), *note_changes(changes, samples)])
    return manifest


def _read_former_manifest(root: Path) -> Manifest | None:
    """Return the manifest that ``index`` wrote before, if any.

    Raises:
        UserError: the folder does not exist, contains packed datasets, or has a manifest of another origin; that of
            ``pack`` records more than the tars contain.
    """
    if root.is_file():
        raise UserError(f"{root} is a file; name the folder that contains the tars, {root.parent}")
    if not root.is_dir():
        raise UserError(f"the folder {root} does not exist; name the folder that contains the tars")
    require_utf8_name(root)
    refuse_run(root)
    inside = describe_datasets_inside(root)
    if inside is not None:
        contains, advice = inside
        raise UserError(
            f"{contains}, whose tars index would merge; {advice}, or move the {FILE_NAME} of each away to index all "
            "tars"
        )
    path = root / FILE_NAME
    if not path.exists():
        return None
    if not is_dataset(root):
        raise UserError(f"{path} is another program's, and index would replace it; move it away")
    try:
        former = Manifest.read(root)
    except UserError as error:
        raise UserError(f"{error}; move it away, and run the command again") from None
    if former.source.get("kind") != INDEXED:
        raise UserError(f"{root} is already packed; check it with: cifar-dist verify {quoted(root)}")
    return former


def _note_labels(manifest: Manifest) -> list[str]:
    """Note what is unexpected in the labels of a dataset that is to be trained on.

    Raises:
        UserError: only some samples of a split have a label.
    """
    labels = {split: manifest.labels(split) for split in manifest.splits if manifest.is_labelled(split)}
    if not labels:
        return ["no sample has a class number in KEY.cls, so the dataset is unlabelled and cannot be trained on"]
    notes = [f"{split} has no labels (KEY.cls): {_WITHOUT[split]}" for split in manifest.splits if split not in labels]
    notes += note_missing_classes(manifest.classes, labels)
    if "train" in labels and len(np.unique(labels["train"])) == 1:
        notes.append("all training images are in one class; a classifier requires at least two")
    return notes


def _note_duplicates(manifest: Manifest, digests: dict[str, list[bytes]]) -> list[str]:
    """Note the images that are in train and in another split, or in two classes; they are named by their tar."""
    hashed = {}
    for split, shards in manifest.splits.items():
        shown = [f"{shard.name}/{key}.{manifest.codec}" for shard in shards for key in shard.keys]
        hashed[split] = HashedSplit(digests[split], manifest.labels(split).tolist(), shown)
    return note_equal_digests(hashed)


def _note_passed_over(root: Path, members: Counter[str]) -> list[str]:
    """Note the members of samples, the files beside the tars and the hidden tars that are not read."""
    notes = []
    if members:
        shown = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(members.items()))
        notes.append(f"passed over members that are neither image nor .cls: {shown}")
    others = [name for name in _visible_files(root) if name != FILE_NAME and not name.endswith(".tar")]
    if others:
        notes.append(f"passed over the files that are not tars: {list_some(others)}")
    hidden = [name for name in hidden_names(root) if name.lower().endswith(".tar")]
    if hidden:
        notes.append(f"passed over hidden tars: {list_some(hidden)}")
    return notes


def _visible_files(root: Path) -> list[str]:
    """List the files at any depth, without hidden ones. Links to folders are followed, as :func:`find_tars` does.

    Raises:
        UserError: a link to a folder that contains it; each tar in that folder would be listed twice.
    """
    found: list[Path] = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        place = Path(folder).relative_to(root)
        above = {os.path.realpath(root / part) for part in (place, *place.parents)}
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in subfolders:
            path = root / place / name
            if os.path.realpath(path) in above:
                raise UserError(f"{path} is a link to a folder that contains it; remove the link")
        found += [place / name for name in files if not name.startswith(".") and (root / place / name).is_file()]
    return sorted(path.as_posix() for path in found)


def _refuse_unreadable_tars(root: Path) -> None:
    """Refuse tars that are compressed, spelled differently or too deep; they would be missing from the dataset."""
    for name in _visible_files(root):
        path = root / name
        if _COMPRESSED_TAR.search(path.name):
            raise UserError(
                f"{path} is compressed, and random access requires a plain tar; decompress it (gunzip for .gz)"
            )
        if path.suffix.lower() == ".tar" and path.suffix != ".tar":
            raise UserError(f"{path} must end in .tar, in lower case; rename it")
        if path.suffix == ".tar" and name.count("/") > 1:
            raise UserError(f"{path} is more than one folder deep; move it up, or index {path.parent}")
        program = _compressed_by(path) if path.suffix == ".tar" else None
        if program is not None:
            raise UserError(
                f"{path} is compressed, and random access requires a plain tar; decompress it, and put the result in "
                f"its place: {program} -dc < {path.name} > plain.tar"
            )


def _compressed_by(path: Path) -> str | None:
    """Return the program that compressed a file, by its first bytes; None if it is not compressed."""
    try:
        with path.open("rb") as file:
            start = file.read(10)
    except OSError:  # whoever indexes the tar reports it
        return None
    return next((program for program, pattern in _COMPRESSED.items() if pattern.match(start)), None)


def _find_tars(root: Path) -> dict[str, list[str]]:
    """Return the tars of each split, in the order train, val, test; 2.tar sorts before 10.tar."""
    _refuse_unreadable_tars(root)
    found = find_tars(root)
    if not found:
        raise UserError(
            f"{root} and its subfolders contain no .tar; to pack images use: cifar-dist pack {quoted(root)} shards/NAME"
        )
    split_of = {name: _split_in_name(root, name) for name in found}
    stray = sorted(name for name in found if split_of[name] is None)
    if stray and len(stray) < len(found):
        raise UserError(
            f"{root / stray[0]} names no split, but other tars do; rename it, as in train-{Path(stray[0]).name}"
        )
    names = sorted(found, key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(20), name))
    tars = {split: [name for name in names if (split_of[name] or "train") == split] for split in SPLITS}
    return {split: many for split, many in tars.items() if many}


def _split_in_name(root: Path, name: str) -> str | None:
    """Return the split named in the path of a tar, or None."""
    if not SHARD_NAME.fullmatch(name):
        raise UserError(f"{root / name} must be named with letters, digits, '.', '_' and '-' only; rename it")
    splits = {SPLIT_WORDS[word] for word in re.split("[^a-z]+", name.lower()) if word in SPLIT_WORDS}
    if len(splits) > 1:
        raise UserError(f"{root / name} names two splits, {' and '.join(sorted(splits))}; rename it to name one")
    return next(iter(splits), None)


def _decode_images(path: Path, shard: Shard, codec: Codec, changes: Counter[str]) -> NDArray[np.uint8]:
    """Decode all images of a tar, uint8 [samples, height, width, 3]; ``changes`` counts those of the stored pixels.

    Raises:
        UserError: an image cannot be decoded, or its size differs from the first one's.
    """
    data = path.read_bytes()

    def image(row: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        offset, size = int(shard.image_offset[row]), int(shard.image_size[row])
        where = f"{path}: '{shard.keys[row]}.{codec}'"
        try:
            array, changed = decode_with_changes(data[offset : offset + size], codec)
        except Exception as error:  # a decoder given arbitrary bytes may raise almost anything
            raise UserError(f"{where} cannot be decoded ({decoding_problem(error)!a}); replace or remove it") from None
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise UserError(f"{where} is {array.dtype} {array.shape}; store it as uint8 [height, width, 3]")
        return array, changed

    with ThreadPoolExecutor() as pool:
        decoded = list(pool.map(image, range(shard.samples)))
    images = [array for array, _ in decoded]
    changes.update(change for _, changed in decoded for change in changed)
    for key, other in zip(shard.keys, images, strict=True):
        if other.shape != images[0].shape:
            shown = [f"'{k}' is {i.shape[1]}x{i.shape[0]}" for k, i in ((shard.keys[0], images[0]), (key, other))]
            raise UserError(f"{path}: {' and '.join(shown)}; {_REPACK_HINT}")
    return np.stack(images)


def _class_names(
    root: Path, shards: dict[str, list[Shard]], names: Sequence[str], former: Manifest | None
) -> tuple[tuple[str, ...], list[str]]:
    """Return the class names, and a note if they are those of the former manifest.

    Raises:
        UserError: there are more labels than names.
    """
    count = 1 + max(int(shard.labels.max()) for many in shards.values() for shard in many)
    if names and len(names) < count:
        raise UserError(
            f"{root} contains the label {count - 1}, but --classes names only {len(names)} classes; name {count}"
        )
    if names:
        return tuple(names), []
    if former is None or former.classes == _numbers(len(former.classes)):
        return _numbers(count), []
    if len(former.classes) < count:
        raise UserError(
            f"{root} contains the label {count - 1}, but its former manifest names only {len(former.classes)} classes; "
            f"name {count} with --classes FILE"
        )
    return former.classes, ["kept the class names of the former manifest"]


def _numbers(count: int) -> tuple[str, ...]:
    """Return the names of classes that have only numbers."""
    return tuple(map(str, range(count)))
