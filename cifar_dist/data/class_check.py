"""Check the classes of a dataset against its training split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.label_files import may_say_which
from cifar_dist.errors import UserError
from cifar_dist.formatting import list_some


def require_two_classes(
    where: str, classes: Sequence[str], labels: Mapping[str, NDArray[np.int64]], tables: Sequence[str] = ()
) -> None:
    """Refuse a labelled training split of a single class: any network learns it perfectly.

    Args:
        where: prefix of the message.
        classes: class names, in label order; empty without labels.
        labels: int64 [samples] for each labelled split.
        tables: names of files that may hold the labels, the likeliest first.

    Raises:
        UserError: all training samples have the same class.
    """
    if not classes or "train" not in labels:
        return
    found = np.unique(labels["train"])
    if len(found) == 1:
        which = may_say_which(tables[0]) if tables else ""
        raise UserError(
            f"{where}: all {len(labels['train']):,} training images are in one class, '{classes[found[0]]}'; a "
            f"classifier requires at least two; sort the images into a folder for each class, CLASS/FILE.png{which}"
        )


def require_shared_classes(
    where: str,
    classes: Sequence[str],
    labels: Mapping[str, NDArray[np.int64]],
    names: Mapping[str, Sequence[str]],
    tables: Sequence[str] = (),
) -> None:
    """Refuse a val or test split none of whose classes is in train: its accuracy would be 0.

    Args:
        where, classes, labels, tables: as for :func:`require_two_classes`.
        names: path of each sample of a split in the source; empty if they are not files.

    Raises:
        UserError: a split shares no class with train.
    """
    trained = set(labels.get("train", ()))
    for split, of_split in labels.items():
        if not trained or not trained.isdisjoint(of_split):
            continue
        folders = sorted({name.rpartition("/")[0] for name in names.get(split, ())})
        if not folders:
            found = list_some([classes[label] for label in np.unique(of_split)])
            raise UserError(f"{where}: no class of {split} is one of train: {found}; number both alike, from 0")
        above = [table for table in tables if folders[0].startswith(table.rpartition("/")[0])]
        which = may_say_which(max(above, key=lambda table: table.count("/"))) if above else ""
        later = "; or move them elsewhere and predict them later: cifar-dist predict RUN FOLDER --out FILE.csv"
        several = len(folders) > 1
        raise UserError(
            f"{where}: {list_some(folders)} {'are not classes' if several else 'is not a class'} of train; sort "
            f"{'their' if several else 'its'} images into the folders of train, {split}/CLASS/FILE{which}"
            f"{later if split == 'test' else ''}"
        )


def note_missing_classes(classes: Sequence[str], labels: Mapping[str, NDArray[np.int64]]) -> list[str]:
    """Note the classes of which a split has no image; arguments as for :func:`require_two_classes`.

    Nothing learns them without training images, and no evaluation says anything of them without others.
    """
    if not classes or "train" not in labels:
        return []
    notes = []
    for split, of_split in labels.items():
        counts = np.bincount(of_split, minlength=len(classes))
        missing = [name for name, count in zip(classes, counts, strict=True) if not count]
        what = "training" if split == "train" else split
        if missing:
            notes.append(f"{len(missing):,} of {len(classes):,} classes have no {what} image: {list_some(missing)}")
    return notes
