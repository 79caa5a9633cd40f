"""Find the split and the class of each image from its path: ``SPLIT/CLASS/FILE`` or ``CLASS/FILE``.

Nothing is passed over in silence: a file that is not an image is noted, and an image that cannot be packed, or a
folder without images, is refused unless the caller skips it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.data.archives import refuse_archives_in
from cifar_dist.data.class_names import in_label_order, note_merged_classes, refuse_or_note_twins
from cifar_dist.data.image_files import (
    SKIP_OPTION,
    describe_unreadable,
    is_image,
    note_not_images,
    suffix_of,
    unreadable_images,
)
from cifar_dist.data.image_tree import ImageTree, refuse_double_splits, refuse_splits_as_classes
from cifar_dist.data.label_files import label_tables, note_label_files, refuse_labels_in_cls
from cifar_dist.data.misplaced_images import describe_misplaced, lost_splits, remedy_for_misplaced
from cifar_dist.errors import UserError
from cifar_dist.formatting import counted, it_or_them, list_some

ARRAYS_HINT = (
    "other formats save the arrays, images in uint8 and labels from 0: "
    "np.savez('NAME.npz', x_train=images, y_train=labels), and x_test, y_test"
)


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
    notes: list[str] = []

    def skip(message: str, remedy: str, *, may: bool = True) -> None:
        """Note what is skipped, or refuse it; also where it may not be, because a split would lose all its images."""
        if not (skip_unusable and may):
            raise UserError(f"{path}: {message}; {remedy}")
        notes.append(f"skipped: {message}")

    files = sorted(name for name in names if not name.endswith("/"))
    images = list(filter(is_image, files))
    unreadable = unreadable_images(files)
    others = sorted(set(files) - set(images) - set(unreadable))
    if unreadable:
        message, remedy = describe_unreadable(unreadable)
        may = bool(images) and not ImageTree.of(images).lost_splits(unreadable, images)
        skip(message, f"{remedy}, or skip with {SKIP_OPTION}" if may else remedy, may=may)
    if not images:
        refuse_archives_in(path, others, lambda archive: f"cifar-dist pack {archive} shards/NAME")
        found = f"contains only {list_some(others)}" if others else "is empty"
        has_tars = not others or any(suffix_of(name) == ".tar" for name in others)
        raise UserError(
            f"{path} {found}; expected the files of a CIFAR archive, or SPLIT/CLASS/FILE.png or CLASS/FILE.png (or "
            f".jpg); for {'WebDataset tars use: cifar-dist index FOLDER' if has_tars else ARRAYS_HINT}"
        )
    refuse_labels_in_cls(path, images, others)
    tree = ImageTree.of(images)
    placed = [name for name in images if tree.has_place_for(name)]
    if misplaced := sorted(set(images) - set(placed)):
        message = describe_misplaced(tree, misplaced, len(images))
        may = bool(placed) and not lost_splits(tree, placed, misplaced)
        skip(message, remedy_for_misplaced(path, tree, placed, misplaced, others), may=may)
    refuse_splits_as_classes(path, tree, placed)
    if empty := tree.folders_without([*placed, *misplaced], names):
        remedy = f"delete {it_or_them(empty)}, or skip {it_or_them(empty)} with {SKIP_OPTION}"
        skip(_describe_empty(empty, others), remedy)
    notes += note_not_images(others)
    notes += note_label_files(placed, others)
    notes += _note_formats(placed)
    refuse_double_splits(path, tree, placed)
    splits = tuple(tree.split(name) for name in placed)
    stored = [tree.stored_class(name) for name in placed]
    classes = tuple(unicodedata.normalize("NFC", name) for name in stored)
    notes += note_merged_classes(stored)
    notes += refuse_or_note_twins(path, splits, classes)
    return ImageLayout(tuple(placed), splits, classes, in_label_order(classes), tuple(notes), label_tables(others))


def _describe_empty(folders: Sequence[str], others: Sequence[str]) -> str:
    message = f"no images in {counted(len(folders), 'class folder')} {list_some(folders)}"
    if unnamed := [name for name in others if name.startswith(tuple(f"{folder}/" for folder in folders))]:
        message += f" ({counted(len(unnamed), 'file')} not named as an image: {list_some(unnamed)})"
    return message


def _note_formats(images: Sequence[str]) -> list[str]:
    """Note a mixture of formats: a network can tell classes apart by the traces of their compression."""
    counts = Counter(map(suffix_of, images))
    if len(counts) < 2:
        return []
    return ["images of several formats: " + ", ".join(f"{count:,} {suffix}" for suffix, count in counts.items())]
