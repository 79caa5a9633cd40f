"""Pack a source into WebDataset tars, with a manifest that gives random access to them.

The same source and the same arguments give the same bytes: the output contains no time, user, path or process id.
(PNG compression depends on Pillow's zlib, so another build may produce different bytes for the same pixels.)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.class_check import note_missing_classes, require_shared_classes, require_two_classes
from cifar_dist.data.dataset_folder import FILE_NAME, is_dataset
from cifar_dist.data.duplicates import note_duplicates
from cifar_dist.data.image import Lossless, encode
from cifar_dist.data.image_files import MAX_SIDE
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.randomness import permutation
from cifar_dist.data.shard import UNLABELLED, Shard
from cifar_dist.data.sources import Source, open_source
from cifar_dist.data.split import SplitPart, hold_out
from cifar_dist.data.split_words import SPLITS
from cifar_dist.data.statistics import channel_statistics, note_black, pixel_counts
from cifar_dist.data.tar import index_tar
from cifar_dist.errors import UserError, quoted
from cifar_dist.files.atomic import folder_atomic
from cifar_dist.files.folders import is_mount_point, is_writable
from cifar_dist.files.temporary import abandoned, is_replaced_of, is_temporary_of
from cifar_dist.formatting import list_some
from cifar_dist.formatting import size as size_of
from cifar_dist.terminal.notice import print_notes
from cifar_dist.terminal.progress import progress

VAL_FRACTION = 0.1
"""Default fraction of train to hold out as val, if the source has no val split."""

# The test split belongs to the dataset, so it must not depend on the seed of one packing.
_TEST_SEED = 0


def pack(
    source: str | Path,
    out: str | Path,
    *,
    codec: Lossless = "png",
    samples_per_shard: int = 1000,
    val_fraction: float | None = None,
    seed: int = 0,
    size: int | None = None,
    skip_unusable: bool = False,
    show: bool = True,
) -> Manifest:
    """Pack a source into the folder ``out`` atomically, replacing a packed dataset of that name.

    Training samples are written in a permuted order, so that every shard has all classes; val and test keep the
    source's order. The key of a sample is its number in the source.

    Args:
        source: as for :func:`~cifar_dist.data.sources.open_source`.
        out: folder of the packed dataset.
        codec: ``png`` (lossless, smaller) or ``npy`` (raw array, faster to read).
        samples_per_shard: samples per tar; the last tar of a split may have fewer.
        val_fraction: fraction of each training class to hold out as val, in [0, 1); 0 for no val split. None uses
            the dataset file's fraction, or 0.1 if the source has no val split.
        seed: determines the order of train and the choice of val.
        size: resize every image to this many pixels a side.
        skip_unusable: skip images that cannot be decoded, images in other formats or places, and class folders
            without images, instead of refusing them.
        show: show progress, and what was passed over or changed, on stderr.

    Raises:
        UserError: the source cannot be read, has one class, ``out`` contains other files, or an argument is invalid.
    """
    if not str(source):
        raise UserError("the source is empty; name a dataset, a file or a folder, or '.' for the working directory")
    out = Path(out)
    if samples_per_shard < 1:
        raise UserError(f"samples per shard is {samples_per_shard}; use at least 1")
    if size is not None and not 1 <= size <= MAX_SIDE:
        raise UserError(f"size is {size}; use 1 to {MAX_SIDE} pixels")
    _require_replaceable(out, Path(source))
    if show:
        print_notes(_note_killed(out))
    opened = open_source(
        str(source), size, skip_unusable=skip_unusable, show=show, check=partial(_require_outside, out)
    )
    labels = {name: split.labels for name, split in opened.data.splits.items() if split.is_labelled}
    require_two_classes(str(source), opened.data.classes, labels, opened.data.tables)
    require_shared_classes(str(source), opened.data.classes, labels, opened.data.names, opened.data.tables)
    splits, fractions, notes = _hold_out_splits(opened, val_fraction, seed)
    first = next(iter(splits.values()))  # train, if it exists
    height, width, channels = first.split.images.shape[1:]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for images in first.images():
        counts += pixel_counts(images)
    if show:
        names = {name: opened.data.names_of(name) for name in splits}
        missing = note_missing_classes(opened.data.classes, labels)
        if labels and "train" not in splits:
            missing = [f"no split 'train', but {', '.join(splits)}: runs can be evaluated on it, and not trained"]
        print_notes((*opened.data.notes, *missing, *notes, *note_black(counts), *note_duplicates(splits, names)))

    mean, std = channel_statistics(counts)
    order = {name: np.arange(len(split)) for name, split in splits.items()}
    if "train" in order:
        order["train"] = permutation(seed, 0, len(splits["train"]), "pack").numpy()
    origin = {**opened.origin, **fractions, "samples_per_shard": samples_per_shard, "seed": seed, "size": opened.size}
    try:
        with folder_atomic(out, replace=True) as folder:
            write = partial(_write_split, folder, codec=codec, samples_per_shard=samples_per_shard, show=show)
            packed = Manifest(
                name=opened.name,
                classes=opened.data.classes,
                shape=(height, width, channels),
                codec=codec,
                source=origin,
                mean=mean,
                std=std,
                splits={
                    name: write(name, split, order[name], opened.data.names_of(name)) for name, split in splits.items()
                },
                root=out,
            )
            packed.save(folder)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    return packed


def _require_outside(out: Path, source: Path) -> None:
    if source.resolve() in out.resolve().parents:
        raise UserError(f"{out} is inside the source {source}; name a folder outside it")


def _require_replaceable(out: Path, source: Path) -> None:
    """Refuse to replace anything that ``pack`` did not write, and what the next ``pack`` of ``source`` would read."""
    _require_outside(out, source)
    if is_mount_point(out):
        raise UserError(f"{out} is a mount point, which pack cannot replace; name a folder in it")
    parent = next((folder for folder in out.resolve().parents if folder.exists()), out)  # the root has no parent
    if not (parent.is_dir() and is_writable(parent)):
        what = "is not a folder" if not parent.is_dir() else "cannot be written to"
        raise UserError(f"{out} cannot be created: {parent} {what}; name another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the packed dataset")
    if out.resolve() == Path.cwd():
        raise UserError(f"{out} is the working directory, which pack would replace; name a folder in it")
    if not any(out.iterdir()):
        return
    if not is_dataset(out):
        raise UserError(f"{out} is neither empty nor a packed dataset; name a new folder")
    packed = _packed_files(out)
    foreign = sorted(path.name for path in out.iterdir() if path.name not in packed or path.is_dir())
    if foreign:
        raise UserError(
            f"{out} contains '{foreign[0]}', which pack did not write and will not delete; move it away, or name a new "
            "folder"
        )


def _note_killed(out: Path) -> list[str]:
    """Note the folders beside ``out`` of processes that have ended: incomplete ones, and datasets they replaced."""
    target, notes = out.resolve(), []
    for path in abandoned(target.parent):
        is_replaced = is_replaced_of(path, target)
        if not is_replaced and not is_temporary_of(path, target):
            continue
        with contextlib.suppress(OSError):  # another user's
            left = f"{path.name} ({size_of(sum(file.stat().st_size for file in path.iterdir()))})"
            if is_replaced and not out.exists():
                kept = target.with_name(f"{target.name}-old")
                notes.append(
                    f"{left} is the dataset that {out} was before a pack was killed while it replaced it; to keep it: "
                    f"mv {quoted(path)} {quoted(kept)}"
                )
                continue
            what = "is a dataset that was replaced" if is_replaced else "was left"
            notes.append(
                f"{left} {what} by a pack that was killed, unless one on another machine "
                f"{'deletes' if is_replaced else 'writes'} it; delete it: rm -r {quoted(path)}"
            )
    return notes


def _packed_files(folder: Path) -> set[str]:
    """Return the names of the files of a dataset that ``pack`` wrote; tars that were indexed are their owner's."""
    try:
        manifest = Manifest.read(folder)
    except UserError as error:
        raise UserError(f"{error}, so pack cannot tell its files from yours; name a new folder") from None
    if manifest.is_indexed:
        return {FILE_NAME}
    return {FILE_NAME, *(shard.name for shards in manifest.splits.values() for shard in shards)}


def _hold_out_splits(
    source: Source, val_fraction: float | None, seed: int
) -> tuple[dict[str, SplitPart], dict[str, float | None], list[str]]:
    """Return the splits to write, in the order train, val, test, the fractions held out of train, and notes."""
    splits = {name: SplitPart.all_of(split) for name, split in source.data.splits.items()}
    notes: list[str] = []
    if val_fraction is None:
        val_fraction = source.val_fraction
    by_default = val_fraction is None
    if by_default and "train" in splits and "val" not in splits:
        val_fraction = VAL_FRACTION
    for name, fraction, hash_seed in (("test", source.test_fraction, _TEST_SEED), ("val", val_fraction, seed)):
        if not fraction:
            continue
        _refuse_fraction(name, fraction, str(source.origin["name"]), splits)
        counts = np.bincount(splits["train"].labels)
        nothing = f"a {name} fraction of {fraction:g} of at most {counts.max():,} images per class is not one image"
        least = math.ceil(100 / counts.max()) / 100
        splits["train"], held = hold_out(splits["train"], fraction, hash_seed, name)
        asked_for = name == "test" or not by_default
        if not len(held) and asked_for:
            enough = f", or at least {least:g}" if least < 1 else ""
            raise UserError(f"{nothing}; use 0 for no {name} split{enough}")
        if len(held):
            splits[name] = held
            unheld = [source.data.classes[label] for label in np.setdiff1d(splits["train"].labels, held.labels)]
            notes += [f"too few images to hold one out for {name}: class {list_some(unheld)}"] if unheld else []
        else:
            remedy = f"; hold one out with --val-fraction {least:g}" if least < 1 else ""
            notes.append(f"no {name} split, as {nothing}{remedy}")
    fractions = {"val_fraction": val_fraction, "test_fraction": source.test_fraction}
    return {name: splits[name] for name in SPLITS if name in splits}, fractions, notes


def _refuse_fraction(name: str, fraction: float, source: str, splits: Collection[str]) -> None:
    if not 0 <= fraction < 1:
        raise UserError(f"the {name} fraction is {fraction}; use a number from 0 to below 1")
    if "train" not in splits or name in splits:
        what = f"already has a split '{name}'" if name in splits else "has no training split"
        raise UserError(f"{source} {what}; drop the {name} fraction")


def _write_split(
    folder: Path,
    name: str,
    split: SplitPart,
    order: NDArray[np.int64],
    names: Sequence[str],
    *,
    codec: Lossless,
    samples_per_shard: int,
    show: bool,
) -> tuple[Shard, ...]:
    shards = []
    with progress(f"packing {name}", len(split), show=show) as advance:
        for number, start in enumerate(range(0, len(split), samples_per_shard)):
            rows = order[start : start + samples_per_shard]
            samples = split.take(rows)
            shard = _write_shard(folder / f"{name}-{number:06d}.tar", samples, codec)
            shards.append(replace(shard, names=tuple(names[id] for id in samples.ids) if names else ()))
            advance(len(rows))
    return tuple(shards)


def _write_shard(path: Path, samples: SplitPart, codec: Lossless) -> Shard:
    from webdataset import TarWriter

    keys = tuple(f"{number:08d}" for number in samples.ids)
    # encoder=False writes bytes unchanged. Time, owner and mode are fixed because they are part of the shard's bytes.
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0, user="", group="", mode=0o644) as tar:
        images = (image for chunk in samples.images() for image in chunk)
        for key, image, label in zip(keys, images, samples.labels.tolist(), strict=True):
            sample = {"__key__": key, codec: encode(image, codec)}
            tar.write(sample if label == UNLABELLED else {**sample, "cls": str(label).encode()})
    return index_tar(path.parent, path.name).shard  # read back, so the manifest describes what is on disk
