"""Check that images without labels, in a folder or an archive, can be predicted; no run is needed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cifar_dist.data.archives import Listing, list_members, read_image_files
from cifar_dist.data.dataset_folder import describe_datasets_inside, find_tars, is_dataset, refuse_part
from cifar_dist.data.image import note_changes
from cifar_dist.data.image_files import is_image, suffix_of
from cifar_dist.data.image_folder import decode_image
from cifar_dist.data.source_suffixes import ARCHIVE_SUFFIXES
from cifar_dist.data.unlabelled import describe_unlabelled
from cifar_dist.errors import UserError
from cifar_dist.evaluation.images_to_predict import names_of_images
from cifar_dist.evaluation.labels_csv import ids_of_names


def list_unlabelled(source: Path, *, show: bool = True) -> Listing | None:
    """List a folder or archive whose images are all in one folder, so that it has no classes; None for anything else.

    Raises:
        UserError: it is an archive that cannot be read, or a shard of a packed dataset.
    """
    refuse_part(source)
    if source.is_dir():
        if is_dataset(source) or find_tars(source) or describe_datasets_inside(source):
            return None
    elif not (source.is_file() and source.name.lower().endswith(ARCHIVE_SUFFIXES)):
        return None
    try:
        members = list_members(source, show=show)
    except UserError:
        if source.is_dir():  # it may be any folder, with sockets and broken links
            return None
        raise
    has_labels = any(suffix_of(name) == ".cls" for name in members.names)
    folders = {name.rpartition("/")[0] for name in members.names if is_image(name)}
    return members if len(folders) == 1 and not has_labels else None


def check_images(source: Path, members: Listing, *, show: bool = True) -> tuple[str, list[str]]:
    """Decode the images of a folder or archive as for a prediction, one at a time.

    Args:
        source: the folder or archive.
        members: of it.
        show: show the progress.

    Returns:
        Their description in one line, and notes on what is not read or is changed.

    Raises:
        UserError: an image cannot be read.
    """
    names, notes = names_of_images(source, members)
    changes: Counter[str] = Counter()
    first_of_size: dict[tuple[int, ...], str] = {}
    for position, where, data in read_image_files(source, names, show=show):
        image = decode_image(data, where, None, changes, of_any_size=True)
        first_of_size.setdefault(image.shape, names[position])
    notes += note_changes(changes, len(names))
    if len(first_of_size) > 1:
        sizes = ", ".join(f"'{name}' is {shape[1]}x{shape[0]}" for shape, name in [*first_of_size.items()][:2])
        notes.append(f"only a run on images that pack --size has resized can predict images of several sizes: {sizes}")
    ids = ids_of_names(names)
    first, last = (str(one) if isinstance(one, int) else f"'{one}'" for one in (ids[0], ids[-1]))
    return describe_unlabelled(len(names), first_of_size, f"{first} to {last}"), notes
