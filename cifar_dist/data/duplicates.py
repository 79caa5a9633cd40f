"""Find images whose pixels are those of another image: in another split, or with another class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from cifar_dist.data.manifest import UNLABELLED
from cifar_dist.data.raw import RawSplit
from cifar_dist.formatting import list_some


def note_duplicates(splits: Mapping[str, RawSplit], names: Mapping[str, Sequence[str]]) -> list[str]:
    """Note the images of val and test that train has, too, and those that are in several classes.

    The first make an evaluation better than it is, the second are learnt with contradicting labels.

    Args:
        splits: in the order train, val, test.
        names: the file of each image, by its id, for the splits whose images are files.
    """
    notes = []
    label_of: dict[bytes, int] = {}
    trained: frozenset[bytes] = frozenset()
    contradicting: list[str] = []
    for name, split in splits.items():
        digests = [hashlib.blake2b(image, digest_size=16).digest() for image in split.images]
        files = names.get(name, ())
        shown = [files[id] if files else f"{name} {id}" for id in split.ids.tolist()]
        for digest, label, file in zip(digests, split.labels.tolist(), shown, strict=True):
            if label != UNLABELLED and label_of.setdefault(digest, label) != label:
                contradicting.append(file)
        copies = [file for digest, file in zip(digests, shown, strict=True) if digest in trained]
        if copies:
            notes.append(
                f"images of {name} that train has, too: {len(copies):,} of {len(split):,}: {list_some(copies)}"
            )
        if name == "train":
            trained = frozenset(digests)
    if contradicting:
        notes.append(f"images that another class has, too: {len(contradicting):,}: {list_some(contradicting)}")
    return notes
