"""The published files of CIFAR-10 and CIFAR-100, and files that only look like them."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support import dataset_builders as build
from support.opened_sources import one_line, open_quietly

CIFAR: dict[str, tuple[Callable[[Path], dict[str, tuple[NDArray[np.uint8], list[int]]]], str, list[str]]] = {
    "cifar-10-batches-py": (build.cifar10, "cifar10-python", build.CLASSES_10),
    "cifar-10-batches-bin": (build.cifar10_binary, "cifar10-binary", build.CLASSES_10),
    "cifar-100-python": (build.cifar100, "cifar100-python", build.FINE),
    "cifar-100-binary": (build.cifar100_binary, "cifar100-binary", build.FINE),
}


@pytest.mark.parametrize("folder", CIFAR)
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_published_cifar_files_are_read_exactly(tmp_path: Path, folder: str, form: str) -> None:
    make, kind, classes = CIFAR[folder]
    expected = make(tmp_path / folder)
    source = tmp_path / folder
    if form == "archive":
        files = {f"{folder}/{name}": data for name, data in build.read_folder(source).items()}
        source = build.write_archive(tmp_path / f"{folder}.tar.gz", {**files, f"{folder}/readme.html": b"hello"})

    opened = open_quietly(str(source))

    assert opened.data.kind == kind
    assert opened.data.classes == tuple(classes)
    assert list(opened.data.splits) == ["train", "test"]
    for split, (images, labels) in expected.items():
        assert np.array_equal(opened.data.splits[split].images, images)
        assert opened.data.splits[split].labels.tolist() == labels
        assert opened.data.splits[split].ids.tolist() == list(range(len(labels)))
    assert opened.origin["name"] == source.name
    assert opened.origin.get("sha256") == (
        hashlib.sha256(source.read_bytes()).hexdigest() if form == "archive" else None
    )


def test_files_that_no_published_archive_has_are_named(tmp_path: Path) -> None:
    build.cifar10(tmp_path / "c")
    (tmp_path / "c" / "readme.html").write_text("hello")
    assert open_quietly(str(tmp_path / "c")).data.notes == ()
    (tmp_path / "c" / "data_batch_6").write_bytes(b"more")
    (note,) = open_quietly(str(tmp_path / "c")).data.notes
    assert note == "passed over the files that are not of cifar10-python: 'data_batch_6'"


def test_a_missing_cifar_batch_is_named(tmp_path: Path) -> None:
    build.cifar10(tmp_path / "c")
    (tmp_path / "c" / "data_batch_4").unlink()
    assert "but not 'data_batch_4'" in one_line(tmp_path / "c")


@pytest.mark.parametrize("name", ["train", "cat/train.bin"])
def test_a_file_of_one_of_their_names_beside_images_is_not_theirs(tmp_path: Path, name: str) -> None:
    folder = build.write_folder(tmp_path / "a", {**build.class_folder({"cat": 2, "dog": 2}), name: b"notes"})
    assert open_quietly(str(folder)).data.notes == (f"passed over 1 file not named as an image: '{name}'",)


def test_a_binary_batch_of_odd_size_is_refused(tmp_path: Path) -> None:
    build.cifar100_binary(tmp_path / "c")
    (tmp_path / "c" / "train.bin").write_bytes(bytes(3073))
    assert "is not a multiple of 3074" in one_line(tmp_path / "c")


def test_a_label_outside_the_classes_is_refused(tmp_path: Path) -> None:
    build.cifar10_binary(tmp_path / "c")
    (tmp_path / "c" / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))
    assert "label 10 of image 0 is not one of the 10 classes" in one_line(tmp_path / "c")


def test_cifar_pickles_with_other_contents_are_refused(tmp_path: Path) -> None:
    build.cifar10(tmp_path / "c")
    (tmp_path / "c" / "data_batch_2").write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}))
    assert "has no 'labels'" in one_line(tmp_path / "c")
    (tmp_path / "c" / "data_batch_2").write_bytes(pickle.dumps({"data": np.zeros((2, 3072)), "labels": [1, 2]}))
    assert "store images as an array of uint8" in one_line(tmp_path / "c")
    (tmp_path / "c" / "data_batch_2").write_bytes(pickle.dumps({"data": np.zeros((2, 3072), "u1"), "labels": [1]}))
    assert "has shape (1,) for 2 images" in one_line(tmp_path / "c")
