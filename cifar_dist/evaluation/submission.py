"""The ``ID,Labels`` CSV that course competitions score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.files import write_output
from cifar_dist.formatting import csv_text


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
