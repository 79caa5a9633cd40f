"""Find the split and the class of each image from its path: ``SPLIT/CLASS/FILE`` or ``CLASS/FILE``.

Nothing is passed over in silence: a file that is not an image is noted, and an image that cannot be packed, or a
folder without images, is refused unless the caller skips it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

from cifar_dist.data.raw import MEANT_WORDS, SPLIT_WORDS, SPLITS
from cifar_dist.errors import UserError, quoted
from cifar_dist.formatting import list_some

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif")
"""Suffixes of the files that are packed; their content decides how they are decoded."""
OTHER_SUFFIXES = frozenset(
    [
        ".apng",
        ".arw",
        ".avif",
        ".cr2",
        ".cr3",
        ".dds",
        ".dng",
        ".exr",
        ".hdr",
        ".heic",
        ".heif",
        ".hif",
        ".ico",
        ".icns",
        ".j2k",
        ".jp2",
        ".jxl",
        ".jxr",
        ".mpo",
        ".nef",
        ".orf",
        ".pbm",
        ".pcx",
        ".pgm",
        ".pnm",
        ".ppm",
        ".psd",
        ".qoi",
        ".raf",
        ".raw",
        ".rw2",
        ".svg",
        ".tga",
        ".tif",
        ".tiff",
        ".xbm",
        ".xpm",
    ]
)
"""Suffixes of images in formats that are not read."""

SKIP_OPTION = "--skip-unusable"
_TRAIN_OR_TEST = ("train", "training", "val", "test")
"""Names of a top-level folder that are split names in any case; a class may be called ``valid`` or ``dev``."""
_SPLIT_FOLDER = re.compile(rf"({'|'.join(MEANT_WORDS)})[-_ ]?(set|data|images|\d{{4}})", re.IGNORECASE)
"""Names of a folder that mean a split, and are not read as one: ``training_set`` of Kaggle, ``train2017`` of COCO."""


@dataclass(frozen=True)
class ImageLayout:
    """The images of a folder or archive.

    Attributes:
        images: names, sorted.
        splits: train, val or test, for each image.
        classes: class name of each image.
        class_names: distinct class names, in label order.
        notes: what was passed over or merged, one line each.
        tables: the other files that may hold labels, the likeliest first.
    """

    images: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    tables: tuple[str, ...]


def find_layout(path: Path, names: Sequence[str], *, skip_unusable: bool = False) -> ImageLayout:
    """Parse the paths of the images among ``names``, the members of the folder or archive at ``path``.

    Folders that contain everything are skipped. Without split folders everything is ``train``. Class names are in
    Unicode's form NFC; they are sorted as numbers if all of them are numbers, else alphabetically.

    Args:
        path: folder or archive, for error messages.
        names: its members; the names of folders end in ``/``.
        skip_unusable: note images of other formats, images in other places and folders without images instead of
            refusing them.

    Raises:
        UserError: no images, or something that the caller does not skip, or class names that differ only in case.
    """
    files = sorted(name for name in names if not name.endswith("/"))
    images = [name for name in files if name.lower().endswith(SUFFIXES)]
    unreadable = unreadable_images(files)
    others = sorted(set(files) - set(images) - set(unreadable))
    notes = []
    if unreadable:
        message, remedy = describe_unreadable(unreadable)
        if not (skip_unusable and images):
            raise UserError(f"{path}: {message}; {remedy}, or skip with {SKIP_OPTION}")
        notes.append(f"skipped: {message}")
    if not images:
        found = f"contains only {list_some(others)}" if others else "is empty"
        raise UserError(
            f"{path} {found}; expected the files of a CIFAR archive, or SPLIT/CLASS/FILE.png or CLASS/FILE.png (or "
            ".jpg); for WebDataset tars use: cifar-dist index FOLDER"
        )
    _refuse_labels_in_cls(path, images, others)
    tree = _Tree.of(images)
    placed = [name for name in images if tree.has_place_for(name)]
    misplaced = sorted(set(images) - set(placed))
    if misplaced:
        message = tree.misplaced_message(misplaced, len(images))
        if not (skip_unusable and placed):
            raise UserError(f"{path}: {message}; {_remedy(path, tree, placed, misplaced, others)}")
        notes.append(f"skipped: {message}")
    _refuse_splits_as_classes(path, tree, placed)
    empty = tree.folders_without(placed, names)
    if empty:
        message = f"no images in {_count(empty, 'class folder')} {list_some(empty)}"
        unnamed = [name for name in others if name.startswith(tuple(f"{folder}/" for folder in empty))]
        if unnamed:
            message += f" ({_count(unnamed, 'file')} not named as an image: {list_some(unnamed)})"
        if not skip_unusable:
            raise UserError(f"{path}: {message}; delete {_it(empty)}, or skip {_it(empty)} with {SKIP_OPTION}")
        notes.append(f"skipped: {message}")
    if others:
        notes.append(f"passed over {_count(others, 'file')} not named as an image: {list_some(others)}")
    notes += _note_label_files(placed, others)
    notes += _note_formats(placed)
    _refuse_double_splits(path, tree, placed)
    splits = tuple(tree.split(name) for name in placed)
    stored = [tree.stored_class(name) for name in placed]
    classes = tuple(unicodedata.normalize("NFC", name) for name in stored)
    notes += _note_merged_classes(stored)
    notes += _refuse_or_note_twins(path, splits, classes)
    return ImageLayout(tuple(placed), splits, classes, _in_label_order(classes), tuple(notes), _label_tables(others))


@dataclass(frozen=True)
class _Tree:
    """Where splits and classes are in the paths.

    Attributes:
        top: path parts of the folders that contain everything.
        with_splits: whether the next part is a split.
    """

    top: tuple[str, ...]
    with_splits: bool

    @classmethod
    def of(cls, images: Sequence[str]) -> _Tree:
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

    def below_top(self, name: str) -> tuple[str, ...]:
        return tuple(name.split("/"))[len(self.top) :]

    def has_place_for(self, image: str) -> bool:
        parts = self.below_top(image)
        return len(parts) == 2 + self.with_splits and (not self.with_splits or parts[0].lower() in SPLIT_WORDS)

    def top_folders(self, images: Iterable[str]) -> list[str]:
        return sorted({parts[0] for parts in map(self.below_top, images) if len(parts) > 1})

    def split(self, image: str) -> str:
        return SPLIT_WORDS[self.below_top(image)[0].lower()] if self.with_splits else "train"

    def stored_class(self, image: str) -> str:
        return self.below_top(image)[-2]

    def is_flat(self, image: str) -> bool:
        """Whether an image lies where a class folder should be."""
        parts = self.below_top(image)
        return len(parts) == 1 + self.with_splits and (not self.with_splits or parts[0].lower() in SPLIT_WORDS)

    def swapped_levels(self, images: Iterable[str]) -> str:
        """Return where the first image at ``CLASS/SPLIT/FILE`` belongs; empty if there is none."""
        for parts in map(self.below_top, images):
            if len(parts) == 3 and parts[1].lower() in SPLIT_WORDS:
                return "/".join((*self.top, parts[1], parts[0], parts[2]))
        return ""

    def misplaced_message(self, misplaced: Sequence[str], total: int) -> str:
        splits = ", with SPLIT train, val or test" if self.with_splits else ""
        if len(misplaced) == 1:
            return f"'{misplaced[0]}' is not at {self.shown}{splits}"
        return f"{len(misplaced):,} of {total:,} images are not at {self.shown}{splits}: {list_some(misplaced)}"

    def folders_without(self, images: Iterable[str], names: Iterable[str]) -> list[str]:
        """List the split and class folders that contain none of the images."""
        levels = range(len(self.top) + 1, len(self.top) + 2 + self.with_splits)
        used = {tuple(name.split("/"))[:level] for name in images for level in levels}
        folders = {tuple(name.split("/"))[:level] for name in names for level in levels if name.count("/") >= level}
        return sorted(
            "/".join(folder)
            for folder in folders - used
            if folder[: len(self.top)] == self.top
            and (not self.with_splits or folder[len(self.top)].lower() in SPLIT_WORDS)
        )


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _count(names: Sequence[str], noun: str) -> str:
    return f"{len(names):,} {noun}{'s' * (len(names) != 1)}"


def _it(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"


def unreadable_images(files: Iterable[str]) -> list[str]:
    """List the files that are named as images in a format that is not read."""
    return [name for name in files if _suffix(name) in OTHER_SUFFIXES]


def describe_unreadable(unreadable: Sequence[str]) -> tuple[str, str]:
    """Return what is wrong with :func:`unreadable_images`, and the remedy."""
    suffixes = ", ".join(sorted({_suffix(name) for name in unreadable}))
    message = f"{_count(unreadable, 'image')} in a format that is not read, {suffixes}: {list_some(unreadable)}"
    return message, f"convert {_it(unreadable)} to PNG"


def _remedy(path: Path, tree: _Tree, placed: Sequence[str], misplaced: Sequence[str], others: Sequence[str]) -> str:
    to_train_on = any(tree.split(name) == "train" for name in placed)
    skip = f", or skip {_it(misplaced)} with {SKIP_OPTION}" if to_train_on else ""
    flat_test = [name for name in misplaced if tree.is_flat(name) and tree.split(name) == "test"]
    only_test = len(flat_test) == len(misplaced)
    if flat_test and path.is_dir() and (only_test or not placed):
        then_skip = f"; then skip {_count(flat_test, 'test image')} without a class with {SKIP_OPTION} and"
        lead = f"{skip} and" if skip else ", or" if only_test else then_skip
        test = quoted(path / flat_test[0].rpartition("/")[0])
        skip = f"{lead} predict {_it(flat_test)} later: cifar-dist predict RUN {test} --out FILE.csv"
    if not all(tree.is_flat(name) for name in misplaced):
        if swapped := tree.swapped_levels(misplaced):
            return f"swap the two levels, as {swapped}{skip}"
        if renaming := _renaming(tree.top_folders(misplaced)):
            return f"{renaming}{skip}"
        levels = 2 + tree.with_splits
        shallow = [name for name in misplaced if len(tree.below_top(name)) < levels]
        split_words = [word for word in tree.top_folders(shallow) if word.lower() in SPLIT_WORDS]
        if split_words and not placed:
            return f"'{split_words[0]}' is read as a split; if it is a class, rename it"
        too_deep = all(len(tree.below_top(name)) > levels for name in misplaced)
        return f"move {_it(misplaced)}{' up' * too_deep}{skip}"
    example = next((name for name in misplaced if tree.split(name) == "train"), misplaced[0])
    *folder, file = example.split("/")
    remedy = f"create a folder for each class, as in {'/'.join((*folder, 'CLASS', file))}"
    if tables := _label_tables(others):
        remedy += f" ('{tables[0]}' may say which)"
    if not folder and path.is_dir():
        remedy += f"; if this folder is one of the classes, pack the one above it, {path.resolve().parent}"
    return remedy + skip


def _beside(images: Iterable[str], others: Iterable[str], suffix: str) -> list[str]:
    """List the files of a suffix that most of the images have beside them; empty if fewer have."""
    files = {name for name in others if _suffix(name) == suffix}
    found = [name in files for name in (f"{image.rpartition('.')[0]}{suffix}" for image in images)]
    return sorted(files) if 2 * sum(found) > len(found) else []


def _refuse_labels_in_cls(path: Path, images: Sequence[str], others: Sequence[str]) -> None:
    """Refuse the content of WebDataset tars, whose folders are not the classes."""
    labels = _beside(images, others, ".cls")
    if not labels:
        return
    folder = quoted(path.parent) if path.suffix.lower() == ".tar" else "FOLDER"
    raise UserError(
        f"{path}: the labels are in {_count(labels, '.cls file')}, such as '{labels[0]}', not in the names of folders; "
        f"a WebDataset tar stays where it is: cifar-dist index {folder}; or move each image to CLASS/FILE by its .cls, "
        "and delete the .cls"
    )


def _note_label_files(images: Sequence[str], others: Sequence[str]) -> list[str]:
    """Note the files beside the images that may hold other labels than the names of folders."""
    return [
        f"{_count(found, f'{suffix} file')} beside the images may hold their labels, but the classes are the folders"
        for suffix in (".json", ".txt")
        if (found := _beside(images, others, suffix))
    ]


def _renaming(folders: Iterable[str]) -> str:
    """Say how to rename the folders that mean a split and are not read as one; empty if none does."""
    meant = {folder: found[1].lower() for folder in folders if (found := _SPLIT_FOLDER.fullmatch(folder))}
    renamed = [f"{folder} to {MEANT_WORDS[word]}" for folder, word in meant.items()]
    renamed.sort(key=lambda line: SPLITS.index(line.rpartition(" ")[2]))
    return f"rename {' and '.join(renamed)}" if renamed else ""


def _refuse_splits_as_classes(path: Path, tree: _Tree, images: Iterable[str]) -> None:
    folders = sorted({tree.stored_class(name) for name in images})
    if not tree.with_splits and all(map(_SPLIT_FOLDER.fullmatch, folders)):
        raise UserError(f"{path}: {list_some(folders)} would be read as classes; {_renaming(folders)}")


def _is_of_labels(name: str) -> bool:
    return bool(re.search(r"(label|annotation)[^/]*\.(csv|tsv|jsonl|txt)$", name.lower()))


def _label_tables(others: Sequence[str]) -> tuple[str, ...]:
    tables = [name for name in others if _suffix(name) in (".csv", ".tsv", ".jsonl") or _is_of_labels(name)]
    return tuple(sorted(tables, key=lambda name: not _is_of_labels(name)))


def _refuse_double_splits(path: Path, tree: _Tree, images: Iterable[str]) -> None:
    folders: dict[str, set[str]] = defaultdict(set)
    for name in images:
        folders[tree.split(name)].add("/".join(name.split("/")[: len(tree.top) + tree.with_splits]))
    for split, spelled in folders.items():
        if len(spelled) > 1:
            raise UserError(f"{path}: the folders {list_some(sorted(spelled))} are all {split}; merge or rename them")


def _note_formats(images: Sequence[str]) -> list[str]:
    """Note a mixture of formats: a network can tell classes apart by the traces of their compression."""
    counts: dict[str, int] = defaultdict(int)
    for name in images:
        counts[_suffix(name)] += 1
    if len(counts) < 2:
        return []
    return ["images of several formats: " + ", ".join(f"{count:,} {suffix}" for suffix, count in counts.items())]


def _note_merged_classes(stored: Iterable[str]) -> list[str]:
    forms: dict[str, set[str]] = defaultdict(set)
    for name in stored:
        forms[unicodedata.normalize("NFC", name)].add(name)
    merged = [name for name, spelled in forms.items() if len(spelled) > 1]
    return [f"merged the class folders that differ only in their Unicode form: {list_some(merged)}"] if merged else []


def _refuse_or_note_twins(path: Path, splits: Sequence[str], classes: Sequence[str]) -> list[str]:
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


def _in_label_order(classes: Iterable[str]) -> tuple[str, ...]:
    names = sorted(set(classes))
    if all(name.isascii() and name.isdecimal() for name in names):
        names.sort(key=int)
    return tuple(names)
