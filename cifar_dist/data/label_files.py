"""Files among images that may hold their labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cifar_dist.data.image_files import suffix_of
from cifar_dist.errors import UserError, quoted
from cifar_dist.formatting import counted


def refuse_labels_in_cls(path: Path, images: Sequence[str], others: Sequence[str]) -> None:
    """Refuse the content of WebDataset tars, whose folders are not the classes."""
    labels = _beside(images, others, ".cls")
    if not labels:
        return
    count = counted(len(labels), ".cls file")
    folder = quoted(path.parent) if path.suffix.lower() == ".tar" else "FOLDER"
    raise UserError(
        f"{path}: the labels are in {count}, such as '{labels[0]}', not in the names of folders; "
        f"a WebDataset tar stays where it is: cifar-dist index {folder}; or move each image to CLASS/FILE by its .cls, "
        "and delete the .cls"
    )


def note_label_files(images: Sequence[str], others: Sequence[str]) -> list[str]:
    """Note the files beside the images that may hold other labels than the names of folders."""
    return [
        f"{counted(len(found), f'{suffix} file')} beside the images may hold their labels, "
        "but the classes are the folders"
        for suffix in (".json", ".txt")
        if (found := _beside(images, others, suffix))
    ]


def label_tables(others: Sequence[str]) -> tuple[str, ...]:
    """List the files that may be tables of labels, the likeliest first.

    Not a sample of a submission, as of a competition: its labels are dummies.
    """
    tables = [name for name in others if suffix_of(name) in (".csv", ".tsv", ".jsonl") or _is_of_labels(name)]
    tables = [name for name in tables if "submission" not in name.lower()]
    return tuple(sorted(tables, key=lambda name: (not _is_of_labels(name), not _is_of_training(name))))


def may_say_which(table: str) -> str:
    """Return the end of a remedy: that a table may hold the classes."""
    return f" ('{table}' may say which; docs/data.md has a script that sorts by it)"


def _beside(images: Iterable[str], others: Iterable[str], suffix: str) -> list[str]:
    """List the files of a suffix that most of the images have beside them; empty if fewer have."""
    files = {name for name in others if suffix_of(name) == suffix}
    found = [name in files for name in (f"{image.rpartition('.')[0]}{suffix}" for image in images)]
    return sorted(files) if 2 * sum(found) > len(found) else []


def _is_of_labels(name: str) -> bool:
    return bool(re.search(r"(label|annotation)[^/]*\.(csv|tsv|jsonl|txt)$", name.lower()))


def _is_of_training(name: str) -> bool:
    return name.rpartition("/")[2].lower().startswith("train")
