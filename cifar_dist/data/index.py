"""Write a manifest for existing WebDataset tars, without changing them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.archives import hidden_names, require_utf8_name
from cifar_dist.data.class_check import note_missing_classes, require_shared_classes
from cifar_dist.data.dataset_folder import FILE_NAME, describe_datasets_inside, is_dataset, refuse_run
from cifar_dist.data.duplicates import HashedSplit, hash_images, note_equal_digests
from cifar_dist.data.image import Codec, decode_with_changes, decoding_problem, note_changes
from cifar_dist.data.manifest import INDEXED, Manifest
from cifar_dist.data.shard import Shard
from cifar_dist.data.statistics import channel_statistics, in_chunks, note_black, pixel_counts
from cifar_dist.data.tar import index_tar
from cifar_dist.data.tar_folder import find_split_tars, split_in_name, visible_files
from cifar_dist.errors import UserError, quoted
from cifar_dist.files.folders import is_writable
from cifar_dist.formatting import list_some
from cifar_dist.terminal.notice import print_notes
from cifar_dist.terminal.progress import progress

_REPACK_HINT = (
    "they must have one size and format; unpack them, sort the images into folders by the numbers in their .cls, "
    "SPLIT/CLASS/FILE, then: cifar-dist pack FOLDER OUT --size 32"
)
_LABEL_SUFFIXES = (".class", ".label", ".target", ".txt", ".json")
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
    tars = find_split_tars(root)
    if not is_writable(root):
        raise _unwritable(root, "it is read-only for you")
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
                passed_over += others
                for images in _decode_images(root / name, shard, codec, changes):
                    here = _ImageFormat(codec, images.shape[1], images.shape[2])
                    common = common or here
                    if here != common:
                        raise UserError(f"{root}: {tars[first][0]} holds {common}, {name} holds {here}; {_REPACK_HINT}")
                    if split == first:
                        counts += pixel_counts(images)
                    digests[split] += hash_images(images)
                shards[split].append(shard)
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
    notes = [
        *kept,
        *_note_unnamed(root, tars),
        *note_black(counts),
        *_note_labels(manifest, passed_over),
        *_note_duplicates(manifest, digests),
    ]
    try:
        manifest.save(root)
    except OSError as error:
        raise _unwritable(root, error.strerror or str(error)) from None
    if show:
        samples = sum(manifest.samples(split) for split in manifest.splits)
        print_notes([*notes, *_note_passed_over(root, passed_over), *note_changes(changes, samples)])
    return manifest


def _unwritable(root: Path, reason: str) -> UserError:
    """Describe a folder of tars, perhaps of others, that cannot receive the manifest."""
    own = quoted(f"{root.resolve().name}-links")
    links = f"mkdir {own} && ln -s {quoted(root.resolve())}/* {own} && cifar-dist index {own}"
    return UserError(f"{root / FILE_NAME} cannot be written ({reason}); link the tars into a folder of yours: {links}")


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
    if not former.is_indexed:
        raise UserError(f"{root} is already packed; check it with: cifar-dist verify {quoted(root)}")
    return former


def _note_unnamed(root: Path, tars: dict[str, list[str]]) -> list[str]:
    """Note tars that are train only because no name says anything else."""
    train = tars.get("train", [])
    if len(train) < 2 or any(split_in_name(root, name) for name in train):
        return []
    return [f"no tar names a split: all {len(train):,} are train"]


def _note_labels(manifest: Manifest, passed_over: Counter[str]) -> list[str]:
    """Note what is unexpected in the labels of a dataset that is to be trained on.

    Raises:
        UserError: only some samples of a split have a label, or val or test has no class of train.
    """
    labels = {split: manifest.labels(split) for split in manifest.splits if manifest.is_labelled(split)}
    if not labels:
        note = "no sample has a class number in KEY.cls, so the dataset is unlabelled and cannot be trained on; "
        return [note + _where_labels_are(manifest, passed_over)]
    notes = [f"{split} has no labels (KEY.cls): {_WITHOUT[split]}" for split in manifest.splits if split not in labels]
    require_shared_classes(str(manifest.root), manifest.classes, labels, {})
    notes += note_missing_classes(manifest.classes, labels)
    if "train" in labels and len(np.unique(labels["train"])) == 1:
        notes.append("all training images are in one class; a classifier requires at least two")
    return notes


def _where_labels_are(manifest: Manifest, passed_over: Counter[str]) -> str:
    """Say how the samples of an unlabelled dataset get labels."""
    if likely := [suffix for suffix in _LABEL_SUFFIXES if passed_over[suffix]]:
        return f"write the class number of each sample to KEY.cls; the {' or '.join(likely)} members may hold it"
    tars = [manifest.root / shard.name for shards in manifest.splits.values() for shard in shards]
    folders = {key.rpartition("/")[0] for split in manifest.splits for key in manifest.keys(split)}
    if len(folders) < 2:
        return "write the class number of each sample to KEY.cls"
    several = "unpack the tars to one folder, then: " if len(tars) > 1 else ""
    source = "FOLDER" if several else quoted(tars[0])
    return f"for images in class folders: {several}cifar-dist pack {source} shards/NAME"


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
    others = [name for name in visible_files(root) if name != FILE_NAME and not name.endswith(".tar")]
    if others:
        notes.append(f"passed over the files that are not tars: {list_some(others)}")
    hidden = [name for name in hidden_names(root) if name.lower().endswith(".tar")]
    if hidden:
        notes.append(f"passed over hidden tars: {list_some(hidden)}")
    return notes


def _decode_images(path: Path, shard: Shard, codec: Codec, changes: Counter[str]) -> Iterator[NDArray[np.uint8]]:
    """Decode all images of a tar in chunks, uint8 [n, height, width, 3]; ``changes`` counts those of the stored pixels.

    Raises:
        UserError: an image cannot be decoded, or its size differs from the first one's.
    """

    def image(row: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        offset, size = int(shard.image_offset[row]), int(shard.image_size[row])
        where = f"{path}: '{shard.keys[row]}.{codec}'"
        data = os.pread(file.fileno(), size, offset)
        try:
            array, changed = decode_with_changes(data, codec)
        except Exception as error:  # a decoder given arbitrary bytes may raise almost anything
            raise UserError(f"{where} cannot be decoded ({decoding_problem(error)!a}); replace or remove it") from None
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise UserError(f"{where} is {array.dtype} {array.shape}; store it as uint8 [height, width, 3]")
        return array, changed

    def image_like_first(row: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        array, changed = image(row)
        if array.shape != first.shape:
            pairs = ((shard.keys[0], first), (shard.keys[row], array))
            shown = [f"'{key}' is {one.shape[1]}x{one.shape[0]}" for key, one in pairs]
            raise UserError(f"{path}: {' and '.join(shown)}; {_REPACK_HINT}")
        return array, changed

    with path.open("rb") as file, ThreadPoolExecutor() as pool:
        first, _ = image(0)
        for chunk in in_chunks(shard.samples, first.nbytes):
            decoded = list(pool.map(image_like_first, range(chunk.start, chunk.stop)))
            changes.update(change for _, changed in decoded for change in changed)
            yield np.stack([array for array, _ in decoded])


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
