"""The files of CIFAR-10 and CIFAR-100 as their authors publish them, for Python and as plain binary.

Krizhevsky: *Learning Multiple Layers of Features from Tiny Images*, 2009; https://www.cs.toronto.edu/~kriz/cifar.html
describes both formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.archives import read_members
from cifar_dist.data.raw import RawDataset, as_images, as_integers, labelled
from cifar_dist.data.safe_pickle import read_pickle
from cifar_dist.errors import UserError

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarFiles:
    """One of the published formats: which files it has, and how they say what an image shows.

    Attributes:
        kind: name of the format.
        train, test: batches of images.
        names: the file with the class names.
        label_key, names_key: keys in the pickles; empty in a binary format.
        label_bytes: bytes before the pixels of a binary record, the last of which is the label; 0 for pickles.
        folder: where the files lie in a tree.
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
    CifarFiles(
        "cifar10-python",
        tuple(f"data_batch_{n}" for n in range(1, 6)),
        "test_batch",
        "batches.meta",
        label_key="labels",
        names_key="label_names",
    ),
    CifarFiles("cifar100-python", ("train",), "test", "meta", label_key="fine_labels", names_key="fine_label_names"),
    CifarFiles(
        "cifar10-binary",
        tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        label_bytes=1,
    ),
    # A record begins with the coarse label; the fine one is the second byte.
    CifarFiles("cifar100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2),
)


def find_cifar(path: Path, names: Sequence[str]) -> CifarFiles | None:
    """The CIFAR format whose files are among ``names``, at the top or in one folder; None where there is none.

    Raises:
        UserError: some of a format's files are there and others are not.
    """
    have = set(names)
    for name in sorted(names):
        folder, _, base = name.rpartition("/")
        for form in FORMATS:
            if base in form.train and "/" not in folder:
                form = CifarFiles(**{**vars(form), "folder": f"{folder}/" if folder else ""})
                missing = [file for file in form.all() if form.folder + file not in have]
                if missing:
                    raise UserError(f"{path} holds '{name}' but not '{form.folder}{missing[0]}'; fetch it again")
                return form
    return None


def read_cifar(path: Path, form: CifarFiles) -> RawDataset:
    """Images and labels of the archive or folder at ``path``, in the published order, test split included.

    Raises:
        UserError: a file is damaged, or is not what its name says.
    """
    files = {name.removeprefix(form.folder): data for name, data in read_members(path, _names(form))}
    where = f"{path}: {form.folder}"
    classes = _classes(form, files[form.names], where + form.names)
    splits = {}
    for split, names in (("train", form.train), ("test", (form.test,))):
        batches = [_batch(form, files.pop(name), where + name) for name in names]
        images = np.concatenate([images for images, _ in batches])
        labels = np.concatenate([labels for _, labels in batches])
        splits[split] = labelled(images, labels, len(classes), where + names[0])
    return RawDataset(form.kind, classes, splits)


def _names(form: CifarFiles) -> set[str]:
    return {form.folder + name for name in form.all()}


def _batch(form: CifarFiles, data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if form.label_bytes:
        record = form.label_bytes + _PIXELS
        if not data or len(data) % record:
            raise UserError(f"{where} has {len(data):,} bytes, which are no records of {record}; fetch it again")
        table = np.frombuffer(data, np.uint8).reshape(-1, record)
        return as_images(table[:, form.label_bytes :], where), table[:, form.label_bytes - 1].astype(np.int64)
    batch = read_pickle(data, where)
    images = as_images(_value(batch, "data", where), f"{where}: data")
    return images, as_integers(_value(batch, form.label_key, where), len(images), f"{where}: {form.label_key}")


def _classes(form: CifarFiles, data: bytes, where: str) -> tuple[str, ...]:
    if form.label_bytes:
        lines = data.decode("utf-8", errors="replace").split("\n")
        names: list[object] = [line.strip() for line in lines if line.strip()]
    else:
        value = _value(read_pickle(data, where), form.names_key, where)
        names = value if isinstance(value, list) else []
    texts = [name.decode("utf-8", errors="replace") if isinstance(name, bytes) else name for name in names]
    classes = tuple(text for text in texts if isinstance(text, str) and text.isprintable())
    if not classes or len(set(classes)) != len(names):
        raise UserError(f"{where} holds no list of class names; fetch it again")
    return classes


def _value(batch: dict[str, object], key: str, where: str) -> object:
    if key not in batch:
        raise UserError(f"{where} has no '{key}'; it is not a CIFAR batch of the kind that its name says")
    return batch[key]
