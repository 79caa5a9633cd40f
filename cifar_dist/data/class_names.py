"""The names of classes, as the folders of images give them."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.formatting import list_some


def note_merged_classes(stored: Iterable[str]) -> list[str]:
    """Note the names that are one class in Unicode's form NFC."""
    forms: dict[str, set[str]] = defaultdict(set)
    for name in stored:
        forms[unicodedata.normalize("NFC", name)].add(name)
    merged = [name for name, spelled in forms.items() if len(spelled) > 1]
    return [f"merged the class folders that differ only in their Unicode form: {list_some(merged)}"] if merged else []


def refuse_or_note_twins(path: Path, splits: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Refuse class names that differ only in case, spaces or leading zeros; note those that a split has, as letters."""
    found_in: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, split in set(zip(classes, splits, strict=True)):
        key = unicodedata.normalize("NFKC", name).casefold().strip()
        found_in[key.lstrip("0") if key.isdecimal() else key][name].add(split)
    twins: list[str] = []
    for spelled in found_in.values():
        names = sorted(spelled)
        twins += names if len(names) > 1 else []
        for first, second in pairwise(names):
            if spelled[first].isdisjoint(spelled[second]):
                where = [f"'{name}' in {sorted(spelled[name])[0]}" for name in (first, second)]
                raise UserError(
                    f"{path}: the classes {' and '.join(where)} differ only in spelling; rename one of them"
                )
    return [f"classes that differ only in spelling: {list_some(sorted(twins))}"] if twins else []


def in_label_order(classes: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names, sorted as numbers if all of them are numbers, else alphabetically."""
    names = sorted(set(classes))
    if all(name.isascii() and name.isdecimal() for name in names):
        names.sort(key=int)
    return tuple(names)
