"""Check the classes of a dataset against its training split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

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
        which = f" ('{tables[0]}' may say which)" if tables else ""
        raise UserError(
            f"{where}: all {len(labels['train']):,} training images are in one class, '{classes[found[0]]}'; a "
            f"classifier requires at least two; sort the images into a folder for each class, CLASS/FILE.png{which}"
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
