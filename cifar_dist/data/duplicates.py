"""Find images whose pixels are those of another image: in another split, or with another class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.shard import UNLABELLED
from cifar_dist.data.split import SplitPart
from cifar_dist.formatting import list_some


class HashedSplit(NamedTuple):
    """The samples of a split, without their pixels.

    Attributes:
        digests: of each image, from :func:`hash_images`.
        labels: class index of each image, or -1.
        shown: what a note calls each image.
    """

    digests: Sequence[bytes]
    labels: Sequence[int]
    shown: Sequence[str]


def hash_images(images: NDArray[np.uint8]) -> list[bytes]:
    """Return a digest of the pixels of each image, uint8 [samples, height, width, 3]."""
    return [hashlib.blake2b(image, digest_size=16).digest() for image in images]


def note_duplicates(splits: Mapping[str, SplitPart], names: Mapping[str, Sequence[str]]) -> list[str]:
    """Note the duplicates among the images of a source, as :func:`note_equal_digests` does.

    Args:
        splits: in the order train, val, test.
        names: the file of each image, by its id, for the splits whose images are files.
    """
    hashed = {}
    for name, split in splits.items():
        files = names.get(name, ())
        shown = [files[id] if files else f"{name} {id}" for id in split.ids.tolist()]
        digests = [digest for images in split.images() for digest in hash_images(images)]
        hashed[name] = HashedSplit(digests, split.labels.tolist(), shown)
    return note_equal_digests(hashed)


def note_equal_digests(splits: Mapping[str, HashedSplit]) -> list[str]:
    """Note the images of val and test that train has, too, and those that are in several classes.

    The first make an evaluation better than it is, the second are learnt with contradicting labels.

    Args:
        splits: in the order train, val, test.
    """
    notes = []
    label_of: dict[bytes, int] = {}
    trained: frozenset[bytes] = frozenset()
    contradicting: list[str] = []
    for name, split in splits.items():
        for digest, label, file in zip(*split, strict=True):
            if label != UNLABELLED and label_of.setdefault(digest, label) != label:
                contradicting.append(file)
        copies = [file for digest, file in zip(split.digests, split.shown, strict=True) if digest in trained]
        if copies:
            notes.append(
                f"images of {name} that train has, too: {len(copies):,} of {len(split.digests):,}: {list_some(copies)}"
            )
        if name == "train":
            trained = frozenset(split.digests)
    if contradicting:
        notes.append(f"images that another class has, too: {len(contradicting):,}: {list_some(contradicting)}")
    return notes
