"""Open the SOURCE of ``pack``: a dataset file, an archive, a folder, a pickle, an npz, or a function."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cifar_dist.config import plugins
from cifar_dist.config.plugin_copies import checksum_of
from cifar_dist.data import npz, unlabelled
from cifar_dist.data.archives import list_members, require_utf8_name
from cifar_dist.data.cifar import find_cifar, read_cifar
from cifar_dist.data.dataset_file import DatasetFile, find_dataset_file, known_names
from cifar_dist.data.dataset_folder import is_dataset, refuse_run
from cifar_dist.data.digits import read_digits
from cifar_dist.data.download import locate_archive
from cifar_dist.data.image_folder import read_image_folder
from cifar_dist.data.raw import IMAGE_FOLDER, RawDataset, RawSplit
from cifar_dist.data.shard import UNLABELLED
from cifar_dist.data.source_suffixes import ARRAY_SUFFIXES, FILE_SUFFIXES, NPZ_SUFFIX
from cifar_dist.errors import UserError, nearest, quoted
from cifar_dist.files.checksums import sha256
from cifar_dist.formatting import counted, list_renamed
from cifar_dist.terminal.progress import waiting


@dataclass(frozen=True)
class Source:
    """A dataset in memory and its provenance.

    Attributes:
        name: short name of the dataset.
        data: its images and labels.
        origin: ``kind``, ``name`` (of the file or folder) and, for a file, its ``sha256``.
        size: pixels a side to which its images were resized, by an argument or the dataset file; None if they were not.
        val_fraction, test_fraction: the dataset file's settings; None if it has none.
    """

    name: str
    data: RawDataset
    origin: dict[str, str]
    size: int | None = None
    val_fraction: float | None = None
    test_fraction: float | None = None


def open_source(
    source: str,
    size: int | None = None,
    *,
    skip_unusable: bool = False,
    show: bool = True,
    check: Callable[[Path], None] = lambda archive: None,
) -> Source:
    """Read a source into memory.

    Args:
        source: NAME of a ``shards/NAME.toml``, a path to a TOML, a path to an archive, folder, pickle or npz, or
            ``path/to/file.py:Attribute`` or ``package.module:Attribute``, a function that returns a
            :class:`~cifar_dist.data.raw.RawDataset`. ``./NAME`` is always a path.
        size: resize every image to this many pixels a side; None uses the dataset file's size, or keeps the original.
        skip_unusable: skip the images and class folders that cannot be packed, instead of refusing them.
        show: show progress bars.
        check: called with the archive or folder of a dataset file before it is read; it may raise.

    Raises:
        UserError: the source does not exist, cannot be read, or is a NAME that a file or folder here has, too.
    """
    path = find_dataset_file(source)
    if path is not None:
        _require_one_meaning(source, path)
    if found := re.match(r"([a-z][a-z0-9+.-]+)://", source):
        by_name = f", or name it with url = '{source}' and its md5 in shards/NAME.toml" if "http" in found[1] else ""
        raise UserError(f"{source} is not downloaded; download it{by_name}")
    if re.match(r"[A-Za-z]:[\\/]", source) and not Path(source).exists():
        raise UserError(f"{source} is a path of Windows; write it as this system does, under WSL as /mnt/c/FOLDER")
    if path is None and plugins.is_spec(source) and (source.endswith(".py") or not Path(source).exists()):
        return _resized(_call_plugin(source), size)
    if path is None:
        return _open_path(Path(source), size, skip_unusable=skip_unusable, show=show)
    file = DatasetFile.load(path)
    size = size or file.size
    if file.embedded is not None:
        data = read_digits() if size is None else read_digits(size)
        opened = _resized(Source(file.name, data, {"kind": data.kind, "name": file.embedded}), size)
    else:
        archive = locate_archive(file, path, show=show)
        check(archive)
        opened = _open_path(archive, size, skip_unusable=skip_unusable, show=show)
    data = opened.data if file.classes is None else _with_classes(opened.data, tuple(file.classes), path)
    return replace(opened, name=file.name, data=data, val_fraction=file.val_fraction, test_fraction=file.test_fraction)


def _require_one_meaning(source: str, path: Path) -> None:
    """Refuse the name of the dataset file ``path`` if it also names something here that could be packed instead."""
    here = Path(source)
    if here == path or not here.exists() or is_dataset(here) or (here.is_dir() and not any(here.iterdir())):
        return
    kind = "folder" if here.is_dir() else "file"
    raise UserError(
        f"'{source}' is a dataset and a {kind} here; use {path} for the dataset, or ./{source} for the {kind}"
    )


def _open_path(path: Path, size: int | None, *, skip_unusable: bool, show: bool) -> Source:
    if not path.exists():
        names = known_names()
        way = "" if names else "give the path of one, or run in a checkout of the repository, whose shards/ has some"
        raise UserError(f"no file, folder or dataset is called '{path}'; {nearest(str(path), names, way)}")
    refuse_run(path)
    if is_dataset(path):
        raise UserError(f"{path} is already packed; check it with: cifar-dist verify {quoted(path)}")
    require_utf8_name(path)
    data = _read(path, size, skip_unusable=skip_unusable, show=show)
    stem = path.resolve().name
    origin = {"kind": data.kind, "name": stem}
    if path.is_file():
        of_known_kind = path.name.lower().endswith(FILE_SUFFIXES)
        assert of_known_kind, f"{path} was read; add its suffix to FILE_SUFFIXES in cifar_dist/data/source_suffixes.py"
        with waiting(f"computing the checksum of {stem}", show=show):
            origin["sha256"] = sha256(path)
        suffix = next((one for one in FILE_SUFFIXES if stem.lower().endswith(one)), "")
        stem = stem[: len(stem) - len(suffix)]
    return _resized(Source(stem, data, origin), size)


def _resized(source: Source, size: int | None) -> Source:
    if size is None:
        return source
    splits = {name: split.resized(size) for name, split in source.data.splits.items()}
    return replace(source, data=replace(source.data, splits=splits), size=size)


def _call_plugin(spec: str) -> Source:
    """Call the function that ``spec`` names."""
    try:
        read = plugins.load(spec)
    except ValueError as error:
        raise UserError(str(error).replace("name", "source", 1)) from None
    try:
        data = read() if callable(read) else None
    except UserError as error:
        raise UserError(f"{spec}: {error}") from None
    if not isinstance(data, RawDataset):
        raise UserError(f"{spec} does not return a cifar_dist.data.raw.RawDataset; see docs/extending.md")
    place, _, attribute = spec.rpartition(":")
    origin = {"kind": data.kind, "name": f"{Path(place).name}:{attribute}"}
    file = plugins.file_of(spec)
    if checksum := next(map(checksum_of, plugins.code_in(spec)), ""):
        origin["sha256"] = checksum
    return Source(file.stem if file is not None else attribute, data, origin)


def _read(path: Path, size: int | None, *, skip_unusable: bool, show: bool) -> RawDataset:
    if path.is_file() and path.suffix.lower() in ARRAY_SUFFIXES:
        if path.suffix.lower() == NPZ_SUFFIX and npz.is_labelled(path):
            return npz.read_labelled_npz(path)
        hidden = unlabelled.read_unlabelled(path)
        labels = np.full(len(hidden.ids), UNLABELLED, dtype=np.int64)
        return RawDataset("unlabelled", (), {"test": RawSplit(hidden.images, labels, hidden.ids)}, hidden.notes)
    members = list_members(path, folders=True, show=show)
    layout = find_cifar(path, members.names)
    if layout is not None:
        return read_cifar(path, layout, members.names)
    return read_image_folder(path, members, size, skip_unusable=skip_unusable, show=show)


def _with_classes(data: RawDataset, classes: tuple[str, ...], path: Path) -> RawDataset:
    """Return the dataset with the classes of the dataset file, in its label order.

    The source's own names in another order permute the labels; other names rename the classes, except those of an
    image folder.
    """
    if not data.classes:
        raise UserError(f"{path}: classes names the classes of a source that has no labels; remove classes")
    classes = tuple(unicodedata.normalize("NFC", name) for name in classes)  # the form of every source's names
    if len(set(classes)) != len(classes) or len(classes) != len(data.classes):
        raise UserError(
            f"{path}: classes lists {counted(len(set(classes)), 'name')}, but the source has {len(data.classes)} "
            "classes; list each class once"
        )
    unknown = sorted(set(data.classes) - set(classes))
    if unknown and data.kind != IMAGE_FOLDER:
        return replace(data, classes=classes, notes=(*data.notes, *_note_renamed(data.classes, classes)))
    if unknown:
        raise UserError(f"{path}: classes lacks '{unknown[0]}', which the source has; {nearest(unknown[0], classes)}")
    order = np.array([*map(classes.index, data.classes), UNLABELLED], dtype=np.int64)  # -1 is the last
    splits = {name: RawSplit(split.images, order[split.labels], split.ids) for name, split in data.splits.items()}
    return replace(data, classes=classes, splits=splits)


def _note_renamed(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Note the classes that are renamed, unless the source only numbers them."""
    if all(name.isdecimal() for name in old):
        return []
    return [f"renamed: {list_renamed(old, new)}"]
