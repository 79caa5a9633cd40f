"""The ``ID,Labels`` CSV that course competitions score: ids and labels as the data's source has them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.files.outputs import write_output
from cifar_dist.tables import csv_text

Labels = Literal["auto", "name", "index"]
"""How a class is written; ``auto``: by name if the run's classes are the names of folders, else by index."""

_OF_PACK = re.compile(r"-\d{7,19}|\d{8,19}")  # an int64 of at least eight characters
_LONGEST_NUMBER = 18  # digits; more may not fit an int64


def sample_ids(data: Manifest, split: str) -> list[int] | list[str]:
    """Return the unique ID of each sample: from the names of its files if the manifest records them, else its key.

    A key that ``pack`` wrote is the number that the sample has in its source. Keys that repeat in several shards of
    others follow the name of their shard, as in ``test-1.tar/0000``.
    """
    keys = data.keys(split)
    if not data.is_indexed and not data.names(split) and all(map(_OF_PACK.fullmatch, keys)):
        return [int(key) for key in keys]
    if len(set(keys)) < len(keys):
        keys = [f"{shard.name}/{key}" for shard in data.shards(split) for key in shard.keys]
    return ids_of_names(data.names(split) or keys)


def ids_of_names(names: Sequence[str]) -> list[int] | list[str]:
    """Return unique IDs for files: the numbers that they are called by, else their names, else their paths."""
    files = [PurePosixPath(name) for name in names]
    stems = [file.stem for file in files]
    if all(stem.isascii() and stem.isdecimal() and len(stem) <= _LONGEST_NUMBER for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    short = [file.name for file in files]
    return short if len(set(short)) == len(short) else list(names)


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key by which ``2.png`` comes before ``10.png``. Numbers have any length, and come before text."""
    parts = re.findall("0*([0-9]+)|([^0-9]+)", name)
    return [(len(digits), digits) if digits else (sys.maxsize, text) for digits, text in parts]


def class_labels(trained_on: Manifest, classes: Sequence[int], labels: Labels) -> list[int] | list[str]:
    """Return predicted classes as they are written in a CSV.

    Args:
        trained_on: the manifest of the run's training data.
        classes: indices of classes.
        labels: see :data:`Labels`.
    """
    by_name = labels == "name" or (labels == "auto" and trained_on.is_of_image_folder)
    return [trained_on.classes[label] for label in classes] if by_name else list(classes)


def write_submission(path: Path, ids: Sequence[int | str], labels: Sequence[int | str]) -> None:
    """Write a row per ID, in the order given: ``ID,Labels`` and then ``17,3``.

    Raises:
        UserError: an ID is repeated.
        OSError: the file cannot be written.
    """
    assert len(ids) == len(labels), f"{len(ids)} ids for {len(labels)} labels"
    if len(set(ids)) != len(ids):
        ((twice, _),) = Counter(ids).most_common(1)
        raise UserError(
            f"the ID {twice} occurs more than once in the input; a file of predictions by ID needs unique IDs"
        )
    write_output(path, csv_text(["ID", "Labels"], zip(ids, labels, strict=True)))
