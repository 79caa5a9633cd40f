"""Images that are not in the folder of a class: what is wrong, and where they belong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from cifar_dist.data.image_files import SKIP_OPTION
from cifar_dist.data.image_tree import ImageTree, renaming
from cifar_dist.data.label_files import label_tables, may_say_which
from cifar_dist.data.split_words import SPLIT_WORDS
from cifar_dist.errors import quoted
from cifar_dist.formatting import counted, it_or_them, list_some


def describe_misplaced(tree: ImageTree, misplaced: Sequence[str], total: int) -> str:
    """Return which of ``total`` images are misplaced."""
    splits = ", with SPLIT train, val or test" if tree.with_splits else ""
    if len(misplaced) == 1:
        return f"'{misplaced[0]}' is not at {tree.shown}{splits}"
    return f"{len(misplaced):,} of {total:,} images are not at {tree.shown}{splits}: {list_some(misplaced)}"


def remedy_for_misplaced(
    path: Path, tree: ImageTree, placed: Sequence[str], misplaced: Sequence[str], others: Sequence[str]
) -> str:
    """Return what to do with the misplaced images.

    Args:
        path: the folder or archive.
        tree: where its images should be.
        placed: the images that are there.
        misplaced: those that are not.
        others: the files that are not images.
    """
    skip = _way_to_skip(path, tree, placed, misplaced)
    if all(tree.is_flat(name) for name in misplaced):
        way = _way_to_class_folders(path, tree, misplaced, others)
        return f"{way}{skip or _way_to_predict(path, tree, placed, others)}"
    if swapped := _swapped_levels(tree, misplaced):
        return f"swap the two levels, as {swapped}{skip}"
    if renamed := renaming(tree.top_folders(misplaced)):
        return f"{renamed}{skip}"
    if unnamed := _unnamed_splits(tree, placed, misplaced):
        them = it_or_them(unnamed)
        splits = f"if {list_some(unnamed)} {'are splits' if len(unnamed) > 1 else 'is a split'}"
        return f"{splits}, rename {them} to train, val or test; if not, move {it_or_them(misplaced)}{skip}"
    shallow = [name for name in misplaced if len(tree.below_top(name)) < tree.levels]
    split_words = [word for word in tree.top_folders(shallow) if word.lower() in SPLIT_WORDS]
    if split_words and not placed:
        return f"'{split_words[0]}' is read as a split; if it is a class, rename it"
    too_deep = all(len(tree.below_top(name)) > tree.levels for name in misplaced)
    return f"move {it_or_them(misplaced)}{' up' * too_deep}{skip}"


def lost_splits(tree: ImageTree, placed: Sequence[str], misplaced: Sequence[str]) -> set[str]:
    """Return the splits that would be empty without the misplaced images, but for test images that wait for predict."""
    lost = (name for name in misplaced if not (tree.is_flat(name) and tree.split(name) == "test"))
    return tree.lost_splits(lost, placed)


def _way_to_skip(path: Path, tree: ImageTree, placed: Sequence[str], misplaced: Sequence[str]) -> str:
    """Return the end of a remedy: to skip the images if others are to train on, and to predict those of ``test``."""
    to_train_on = any(tree.split(name) == "train" for name in placed) and not lost_splits(tree, placed, misplaced)
    skip = f", or skip {it_or_them(misplaced)} with {SKIP_OPTION}" if to_train_on else ""
    flat_test = [name for name in misplaced if tree.is_flat(name) and tree.split(name) == "test"]
    only_test = len(flat_test) == len(misplaced)
    if not flat_test or not path.is_dir() or (placed and not only_test):
        return skip
    then_skip = f"; then skip {counted(len(flat_test), 'test image')} without a class with {SKIP_OPTION} and"
    lead = f"{skip} and" if skip else ", or" if only_test else then_skip
    test = quoted(path / flat_test[0].rpartition("/")[0])
    return f"{lead} predict {it_or_them(flat_test)} later: cifar-dist predict RUN {test} --out FILE.csv"


def _way_to_predict(path: Path, tree: ImageTree, placed: Sequence[str], others: Sequence[str]) -> str:
    """Return the end of a remedy: to predict images none of which may have a class; empty if some may."""
    if placed or tree.with_splits or label_tables(others):
        return ""
    return f"; to predict images without classes: cifar-dist predict RUN {quoted(path)} --out FILE.csv"


def _way_to_class_folders(path: Path, tree: ImageTree, flat: Sequence[str], others: Sequence[str]) -> str:
    example = next((name for name in flat if tree.split(name) == "train"), flat[0])
    *folder, file = example.split("/")
    remedy = f"create a folder for each class, as in {'/'.join((*folder, 'CLASS', file))}"
    if tables := label_tables(others):
        remedy += may_say_which(tables[0])
    if not folder and path.is_dir():
        remedy += f"; if this folder is one of the classes, pack the one above it, {path.resolve().parent}"
    return remedy


def _unnamed_splits(tree: ImageTree, placed: Iterable[str], misplaced: Iterable[str]) -> list[str]:
    """List the folders of misplaced images that may be splits: those in which another one's classes are, too."""
    classes: dict[str, set[str]] = defaultdict(set)
    unnamed = set()
    for name in (*placed, *misplaced) if tree.with_splits else misplaced:
        folder, *rest = tree.below_top(name)
        if len(rest) != 2:
            return []
        classes[folder].add(rest[0])
        if folder.lower() not in SPLIT_WORDS:
            unnamed.add(folder)
    shared = Counter(name for found in classes.values() for name in found)
    return sorted(folder for folder in unnamed if any(shared[name] > 1 for name in classes[folder]))


def _swapped_levels(tree: ImageTree, images: Iterable[str]) -> str:
    """Return where the first image at ``CLASS/SPLIT/FILE`` belongs; empty if there is none."""
    for parts in map(tree.below_top, images):
        if len(parts) == 3 and parts[1].lower() in SPLIT_WORDS:
            return "/".join((*tree.top, parts[1], parts[0], parts[2]))
    return ""
