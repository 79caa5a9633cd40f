"""Find the tars in a folder, and the split of each: a word in its name or in the name of its folder."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cifar_dist.data.dataset_folder import describe_datasets_inside, find_tars
from cifar_dist.data.shard import SHARD_NAME
from cifar_dist.data.split_words import MEANT_WORDS, SPLIT_WORDS, SPLITS
from cifar_dist.errors import UserError, quoted

_COMPRESSED_TAR = re.compile(r"\.(tar\.[a-z0-9]+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_COMPRESSED: Final = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "bzip2": re.compile(rb"BZh[1-9]1AY&SY"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
}
"""What a file begins with, by the program that compressed it."""
_NEAR_SPLIT = re.compile(
    rf"([A-Za-z]*?)((?i:{'|'.join(MEANT_WORDS)}))(?:((?i:sets?|data|images|imgs|split))|([A-Z][a-z]*))?"
)
"""A split's word between other letters, as in ``trainset``, ``testA`` or ``cifartest``; also ``eval``."""


def find_split_tars(root: Path) -> dict[str, list[str]]:
    """Return the tars of each split, in the order train, val, test; 2.tar sorts before 10.tar.

    If no tar names a split, all are train.

    Raises:
        UserError: there are none, one would be missing from the dataset, or its split is in doubt.
    """
    _refuse_unreadable_tars(root)
    found = find_tars(root)
    if not found:
        raise UserError(
            f"{root} and its subfolders contain no .tar; to pack images use: cifar-dist pack {quoted(root)} shards/NAME"
        )
    _refuse_links_to_each_other(root, found)
    split_of = {name: split_in_name(root, name) for name in found}
    _refuse_doubtful_splits(root, sorted(name for name in found if split_of[name] is None), len(found))
    names = sorted(found, key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(20), name))
    tars = {split: [name for name in names if (split_of[name] or "train") == split] for split in SPLITS}
    return {split: many for split, many in tars.items() if many}


def split_in_name(root: Path, name: str) -> str | None:
    """Return the split named in the path of a tar, or None."""
    if not SHARD_NAME.fullmatch(name):
        raise UserError(f"{root / name} must be named with letters, digits, '.', '_' and '-' only; rename it")
    splits = {SPLIT_WORDS[word] for word in re.split("[^a-z]+", name.lower()) if word in SPLIT_WORDS}
    if len(splits) > 1:
        raise UserError(f"{root / name} names two splits, {' and '.join(sorted(splits))}; rename it to name one")
    return next(iter(splits), None)


def visible_files(root: Path) -> list[str]:
    """List the files at any depth, without hidden ones. Links to folders are followed, as :func:`find_tars` does.

    Raises:
        UserError: a folder that cannot be read, or a link to a folder that contains it; each tar in that folder would
            be listed twice.
    """
    found: list[Path] = []
    for folder, subfolders, files in os.walk(root, onerror=_refuse_unreadable_folder, followlinks=True):
        place = Path(folder).relative_to(root)
        above = {os.path.realpath(root / part) for part in (place, *place.parents)}
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in subfolders:
            path = root / place / name
            if os.path.realpath(path) in above:
                raise UserError(f"{path} is a link to a folder that contains it; remove the link")
        found += [place / name for name in files if not name.startswith(".") and (root / place / name).is_file()]
    return sorted(path.as_posix() for path in found)


def _refuse_unreadable_folder(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


def _refuse_unreadable_tars(root: Path) -> None:
    """Refuse tars that are compressed, spelled differently or too deep; they would be missing from the dataset."""
    for name in visible_files(root):
        path = root / name
        if _COMPRESSED_TAR.search(path.name):
            raise UserError(
                f"{path} is compressed, and random access requires a plain tar; decompress it (gunzip for .gz)"
            )
        if path.suffix.lower() == ".tar" and path.suffix != ".tar":
            raise UserError(f"{path} must end in .tar, in lower case; rename it")
        if path.suffix == ".tar" and name.count("/") > 1:
            raise UserError(f"{path} is more than one folder deep; move it up, or index {path.parent}")
        program = _compressed_by(path) if path.suffix == ".tar" else None
        if program is not None:
            raise UserError(
                f"{path} is compressed, and random access requires a plain tar; decompress it, and put the result in "
                f"its place: {program} -dc < {path.name} > plain.tar"
            )


def _compressed_by(path: Path) -> str | None:
    """Return the program that compressed a file, by its first bytes; None if it is not compressed."""
    try:
        with path.open("rb") as file:
            start = file.read(10)
    except OSError:  # whoever indexes the tar reports it
        return None
    return next((program for program, pattern in _COMPRESSED.items() if pattern.match(start)), None)


def _refuse_links_to_each_other(root: Path, names: Sequence[str]) -> None:
    """Refuse two names of one tar, by a link to it or to its folder; its samples would count twice."""
    names_of: dict[str, str] = {}
    for name in names:
        other = names_of.setdefault(os.path.realpath(root / name), name)
        if other != name:
            raise UserError(f"{root / other} and {root / name} are one file; remove the link to it, or to its folder")


def _refuse_doubtful_splits(root: Path, unnamed: Sequence[str], total: int) -> None:
    """Refuse ``unnamed``, the tars without the word of a split, where they may not all be train."""
    near = _near_splits(unnamed)
    if near or 0 < len(unnamed) < total:
        name = min(near or unnamed)
        remedy = "to begin with train-, val- or test-"
        if name in near:
            split, renamed = near[name]
            free = not (root / renamed).exists()
            remedy = f"to {renamed if free else Path(name).with_name(f'{split}-{Path(name).name}')}"
        others_do = ", but other tars do" if len(unnamed) < total else ""
        raise UserError(f"{root / name} names no split{others_do}; rename it {remedy}")
    here = root.resolve()
    split = MEANT_WORDS.get(here.name.lower(), "train")
    if len(unnamed) < total or split == "train":
        return
    beside = any(os.path.isdir(here.parent / word) for word, other in SPLIT_WORDS.items() if other != split)
    above = beside and all("/" not in name for name in unnamed) and describe_datasets_inside(here.parent) is None
    index_above = f"index the folder above: cifar-dist index {quoted(here.parent)}, or " if above else ""
    raise UserError(
        f"{root} is named '{here.name}', but none of its tars names a split, so all would be train; {index_above}"
        f"rename the tars to begin with {split}-, or with train- if they are"
    )


def _near_splits(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the splits that tars mean without naming them, and what to rename each tar to.

    A word inside another counts where an upper-case letter begins it, or where the same letters surround two splits:
    ``cifartrain`` and ``cifartest``, but not ``latest``.
    """
    found = {name: list(_words_near_splits(name)) for name in names}
    splits: dict[str, set[str]] = defaultdict(set)
    for word in (word for words in found.values() for word in words):
        splits[word.around].add(word.split)
    return {
        name: (word.split, word.renamed)
        for name, words in found.items()
        for word in words
        if word.is_sure or len(splits[word.around]) > 1
    }


class _NearSplit(NamedTuple):
    """A word of a tar's path that contains that of a split.

    Attributes:
        split: train, val or test.
        around: the other letters of the word.
        renamed: the path with the split's word alone.
        is_sure: whether the word can mean nothing else.
    """

    split: str
    around: str
    renamed: str
    is_sure: bool


def _words_near_splits(name: str) -> Iterator[_NearSplit]:
    for letters in re.finditer("[A-Za-z]+", name):
        if near := _NEAR_SPLIT.fullmatch(letters[0]):
            before, word, what, after = near.groups(default="")
            split = MEANT_WORDS[word.lower()]
            renamed = "-".join(filter(None, (before, split, after)))
            yield _NearSplit(
                split,
                around=f"{before}*{what}{after}".lower(),
                renamed=name[: letters.start()] + renamed + name[letters.end() :],
                is_sure=len(after) <= 1 and (not before or (word[0].isupper() and not letters[0].isupper())),
            )
