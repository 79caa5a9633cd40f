"""The tree of folders that images are in: which of its levels are splits and classes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.data.split_words import MEANT_WORDS, SPLIT_WORDS, SPLITS
from cifar_dist.errors import UserError
from cifar_dist.formatting import list_some

_TRAIN_OR_TEST = ("train", "training", "val", "test")
"""Names of a top-level folder that are split names in any case; a class may be called ``valid`` or ``dev``."""
_SPLIT_FOLDER = re.compile(
    rf"({'|'.join(MEANT_WORDS)})(?:[-_ ]?(?:set|data|images|\d{{4}})|(?<=eval)|(?<=evaluation))", re.IGNORECASE
)
"""Names of a folder that mean a split, and are not read as one: ``training_set`` of Kaggle, ``train2017`` of COCO."""


@dataclass(frozen=True)
class ImageTree:
    """Where splits and classes are in the paths.

    Attributes:
        top: path parts of the folders that contain everything.
        with_splits: whether the next part is a split.
    """

    top: tuple[str, ...]
    with_splits: bool

    @classmethod
    def of(cls, images: Sequence[str]) -> ImageTree:
        parts = [tuple(name.split("/")) for name in images]
        depth = 0
        while (
            all(len(name) > depth + 2 for name in parts)
            and len({name[depth] for name in parts}) == 1
            and parts[0][depth].lower() not in SPLIT_WORDS
        ):
            depth += 1
        words = {name[depth].lower() for name in parts if len(name) > depth + 1}
        with_splits = any(word in _TRAIN_OR_TEST for word in words) or (
            all(word in SPLIT_WORDS for word in words) and all(len(name) > depth + 2 for name in parts)
        )
        return cls(parts[0][:depth], with_splits)

    @property
    def shown(self) -> str:
        return "SPLIT/CLASS/FILE" if self.with_splits else "CLASS/FILE"

    @property
    def levels(self) -> int:
        """How many parts the path of an image has below the top."""
        return 3 if self.with_splits else 2

    def below_top(self, name: str) -> tuple[str, ...]:
        return tuple(name.split("/"))[len(self.top) :]

    def has_place_for(self, image: str) -> bool:
        parts = self.below_top(image)
        return len(parts) == self.levels and self._begins_with_split(parts)

    def is_flat(self, image: str) -> bool:
        """Whether an image lies where a class folder should be."""
        parts = self.below_top(image)
        return len(parts) == self.levels - 1 and self._begins_with_split(parts)

    def _begins_with_split(self, parts: Sequence[str]) -> bool:
        return not self.with_splits or parts[0].lower() in SPLIT_WORDS

    def top_folders(self, images: Iterable[str]) -> list[str]:
        return sorted({parts[0] for parts in map(self.below_top, images) if len(parts) > 1})

    def split(self, image: str) -> str:
        return SPLIT_WORDS[self.below_top(image)[0].lower()] if self.with_splits else "train"

    def lost_splits(self, skipped: Iterable[str], kept: Iterable[str]) -> set[str]:
        """Return the splits that have images among the skipped ones and none among those that are kept."""
        of_skipped, of_kept = (
            {self.split(name) for name in names if self._begins_with_split(self.below_top(name))}
            for names in (skipped, kept)
        )
        return of_skipped - of_kept

    def stored_class(self, image: str) -> str:
        return self.below_top(image)[-2]

    def folders_without(self, images: Iterable[str], names: Iterable[str]) -> list[str]:
        """List the split and class folders that contain none of the images."""
        levels = range(len(self.top) + 1, len(self.top) + self.levels)
        used = {tuple(name.split("/"))[:level] for name in images for level in levels}
        folders = {tuple(name.split("/"))[:level] for name in names for level in levels if name.count("/") >= level}
        return sorted(
            "/".join(folder)
            for folder in folders - used
            if folder[: len(self.top)] == self.top and self._begins_with_split(folder[len(self.top) :])
        )


def renaming(folders: Iterable[str]) -> str:
    """Say how to rename the folders that mean a split and are not read as one; empty if none does."""
    meant = {folder: found[1].lower() for folder in folders if (found := _SPLIT_FOLDER.fullmatch(folder))}
    renamed = [f"{folder} to {MEANT_WORDS[word]}" for folder, word in meant.items()]
    renamed.sort(key=lambda line: SPLITS.index(line.rpartition(" ")[2]))
    return f"rename {' and '.join(renamed)}" if renamed else ""


def refuse_splits_as_classes(path: Path, tree: ImageTree, images: Iterable[str]) -> None:
    """Refuse folders that mean splits where classes are."""
    folders = sorted({tree.stored_class(name) for name in images})
    if not tree.with_splits and all(map(_SPLIT_FOLDER.fullmatch, folders)):
        raise UserError(f"{path}: {list_some(folders)} would be read as classes; {renaming(folders)}")


def refuse_double_splits(path: Path, tree: ImageTree, images: Iterable[str]) -> None:
    """Refuse several folders of one split."""
    folders: dict[str, set[str]] = defaultdict(set)
    for name in images:
        folders[tree.split(name)].add("/".join(name.split("/")[: len(tree.top) + tree.with_splits]))
    for split, spelled in folders.items():
        if len(spelled) > 1:
            raise UserError(f"{path}: the folders {list_some(sorted(spelled))} are all {split}; merge or rename them")
