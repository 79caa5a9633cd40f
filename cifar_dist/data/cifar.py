"""Read CIFAR-10 and CIFAR-100 as published by their authors, in the Python and the binary format.

Krizhevsky: *Learning Multiple Layers of Features from Tiny Images*, 2009; https://www.cs.toronto.edu/~kriz/cifar.html
describes both formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.archives import read_members
from cifar_dist.data.arrays import as_images, as_integers
from cifar_dist.data.image_files import is_image
from cifar_dist.data.raw import RawDataset, labelled_split
from cifar_dist.data.safe_pickle import read_pickle
from cifar_dist.errors import UserError
from cifar_dist.formatting import list_some

_PIXELS = 3 * 32 * 32
_UNUSED_FILES = ("readme.html", "file.txt~", "coarse_label_names.txt")  # of the published archives


@dataclass(frozen=True)
class CifarFormat:
    """One of the published formats: its files, and where they store labels and class names.

    Attributes:
        kind: name of the format.
        train, test: file names of the image batches.
        names: file name of the list of class names.
        label_key, names_key: keys in the pickles; empty for a binary format.
        label_bytes: bytes before the pixels of a binary record, the last of which is the label; 0 for pickles.
        folder: folder of the files within the archive, with a trailing slash; empty for the top.
    """

    kind: str
    train: tuple[str, ...]
    test: str
    names: str
    label_key: str = ""
    names_key: str = ""
    label_bytes: int = 0
    folder: str = ""

    def all(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names)


FORMATS = (
    CifarFormat(
        "cifar10-python",
        tuple(f"data_batch_{n}" for n in range(1, 6)),
        "test_batch",
        "batches.meta",
        label_key="labels",
        names_key="label_names",
    ),
    CifarFormat("cifar100-python", ("train",), "test", "meta", label_key="fine_labels", names_key="fine_label_names"),
    CifarFormat(
        "cifar10-binary",
        tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        label_bytes=1,
    ),
    # A record begins with the coarse label; the second byte is the fine label.
    CifarFormat("cifar100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2),
)


def find_cifar(path: Path, names: Sequence[str]) -> CifarFormat | None:
    """Return the CIFAR format whose files are among ``names``, at the top or in one folder, or None.

    Beside image files, a name such as ``train`` alone is not CIFAR's.

    Raises:
        UserError: some files of a format are missing, and there are no image files.
    """
    present = set(names)
    has_images = any(map(is_image, names))
    for name in sorted(names):
        folder, _, base = name.rpartition("/")
        for layout in FORMATS:
            if base in layout.train and "/" not in folder:
                layout = replace(layout, folder=f"{folder}/" if folder else "")
                missing = [file for file in layout.all() if layout.folder + file not in present]
                if missing and has_images:
                    continue
                if missing:
                    raise UserError(
                        f"{path} contains '{name}' but not '{layout.folder}{missing[0]}'; download it again"
                    )
                return layout
    return None


def read_cifar(path: Path, layout: CifarFormat, names: Sequence[str]) -> RawDataset:
    """Read the train and test splits of the archive or folder at ``path``, in the published order.

    The dataset notes the files among ``names``, the members of ``path``, that no published archive contains.

    Raises:
        UserError: a file is corrupt, or its content does not match its name.
    """
    files = {name.removeprefix(layout.folder): data for name, data in read_members(path, _member_names(layout))}
    where = f"{path}: {layout.folder}"
    classes = _read_class_names(layout, files[layout.names], where + layout.names)
    splits = {}
    for split, stored_in in (("train", layout.train), ("test", (layout.test,))):
        batches = [_read_batch(layout, files.pop(name), where + name) for name in stored_in]
        images = np.concatenate([images for images, _ in batches])
        labels = np.concatenate([labels for _, labels in batches])
        splits[split] = labelled_split(images, labels, len(classes), where + stored_in[0])
    used = _member_names(layout) | {layout.folder + name for name in _UNUSED_FILES}
    others = sorted(name for name in names if name not in used and not name.endswith("/"))
    notes = (f"passed over the files that are not of {layout.kind}: {list_some(others)}",) if others else ()
    return RawDataset(layout.kind, classes, splits, notes)


def _member_names(layout: CifarFormat) -> set[str]:
    return {layout.folder + name for name in layout.all()}


def _read_batch(layout: CifarFormat, data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if layout.label_bytes:
        record = layout.label_bytes + _PIXELS
        if not data or len(data) % record:
            raise UserError(
                f"{where} has {len(data):,} bytes, which is not a multiple of {record}, the size of a record; "
                "download it again"
            )
        table = np.frombuffer(data, np.uint8).reshape(-1, record)
        return as_images(table[:, layout.label_bytes :], where), table[:, layout.label_bytes - 1].astype(np.int64)
    batch = read_pickle(data, where)
    images = as_images(_require_key(batch, "data", where), f"{where}: data")
    return images, as_integers(
        _require_key(batch, layout.label_key, where), len(images), f"{where}: {layout.label_key}"
    )


def _read_class_names(layout: CifarFormat, data: bytes, where: str) -> tuple[str, ...]:
    if layout.label_bytes:
        lines = data.decode("utf-8-sig", errors="replace").split("\n")
        names: list[object] = [line.strip() for line in lines if line.strip()]
    else:
        value = _require_key(read_pickle(data, where), layout.names_key, where)
        names = value if isinstance(value, list) else []
    texts = [name.decode("utf-8", errors="replace") if isinstance(name, bytes) else name for name in names]
    classes = tuple(text for text in texts if isinstance(text, str) and text.isprintable())
    if not classes or len(set(classes)) != len(names):
        raise UserError(f"{where} does not contain a list of class names; download it again")
    return classes


def _require_key(batch: dict[str, object], key: str, where: str) -> object:
    if key not in batch:
        raise UserError(f"{where} has no '{key}', which a CIFAR file of that name has; download it again")
    return batch[key]
