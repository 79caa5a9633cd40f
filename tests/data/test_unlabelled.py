"""Unlabelled images, whose ids name them in the predictions."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from support import dataset_builders as build

from cifar_dist.data.unlabelled import read_unlabelled
from cifar_dist.errors import UserError


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", [str, str.encode])
def test_images_and_ids_of_a_pickle_are_read(tmp_path: Path, protocol: int, key: Callable[[str], str | bytes]) -> None:
    images, ids = build.random_images(4), np.array([30, 10, 20, -1])
    for data in (images, build.planes(images)):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({key("data"): data, key("ids"): ids}, protocol))
        unlabelled = read_unlabelled(tmp_path / "a.pkl")
        assert np.array_equal(unlabelled.images, images)
        assert unlabelled.images.flags.writeable
        assert unlabelled.ids.tolist() == [30, 10, 20, -1]
        assert unlabelled.ids.dtype == np.int64


def test_unlabelled_npz_and_ids_in_a_list(tmp_path: Path) -> None:
    images = build.random_images(3)
    np.savez_compressed(tmp_path / "a.npz", data=images, ids=np.arange(3, dtype=np.uint16))
    assert np.array_equal(read_unlabelled(tmp_path / "a.npz").images, images)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"data": images, "ids": [5, np.int32(4), 3]}))
    assert read_unlabelled(tmp_path / "a.pkl").ids.tolist() == [5, 4, 3]


def test_other_entries_are_noted(tmp_path: Path) -> None:
    """CIFAR's files have some without labels."""
    content = {"data": build.random_images(2), "ids": [0, 1], "filenames": ["a", "b"], "batch_label": "testing"}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    assert read_unlabelled(tmp_path / "a.pkl").notes == (
        "passed over what is not data or ids: 'filenames', 'batch_label'",
    )
    np.savez(tmp_path / "a.npz", data=build.random_images(2), ids=np.arange(2), labels=np.arange(2))
    with pytest.raises(UserError, match=r"has 'labels' .* np.savez\('NAME.npz', x_train=images, y_train=labels\)$"):
        read_unlabelled(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_rows_that_are_read_as_planes_are_noted(tmp_path: Path, suffix: str) -> None:
    images, path = build.random_images(2), tmp_path / f"a{suffix}"
    for data, notes in ((images, 0), (images.reshape(2, -1), 1)):
        if suffix == ".npz":
            np.savez(path, data=data, ids=np.arange(2))
        else:
            path.write_bytes(pickle.dumps({"data": data, "ids": [0, 1]}))
        found = read_unlabelled(path).notes
        assert len(found) == notes
    assert found[0].startswith("read the rows of 'data' as the red, the green and the blue plane of an image, as in")


def test_labelled_images_are_for_evaluate(tmp_path: Path) -> None:
    path = tmp_path / "my set.npz"
    np.savez(path, x_test=build.random_images(2), y_test=np.arange(2))
    with pytest.raises(UserError) as error:
        read_unlabelled(path)
    assert str(error.value) == (
        f"{path} has labels: cifar-dist pack '{path}' 'shards/my set', then cifar-dist evaluate RUN --data "
        "'shards/my set'"
    )
    np.savez(path, build.random_images(2))
    with pytest.raises(UserError, match=r"'arr_0'; .*np.savez\('NAME.npz', data=images, ids=np.arange\(len\(images"):
        read_unlabelled(path)


def test_ids_of_text_name_the_way_to_keep_them(tmp_path: Path) -> None:
    content: dict[str, ArrayLike] = {"data": build.random_images(2), "ids": ["a", "b"]}
    build.write_npz(tmp_path / "a.npz", content)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    for name in ("a.npz", "a.pkl"):
        with pytest.raises(UserError, match=r"predict a folder of image files, whose names are then the ids$"):
            read_unlabelled(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"data": np.zeros((2, 32, 32, 3), "u1")}, "has no 'ids'"),
        ({"data": np.zeros((2, 32, 32, 3), "u1"), "ids": [7, 7]}, "the id 7 occurs more than once"),
        ({"data": np.zeros((2, 32, 32, 3), "u1"), "ids": [1.0, 2.0]}, "is not a list of integers"),
        ({"data": np.zeros((2, 32, 32, 3), "u1"), "ids": [1, 2, 3]}, "shape (3,) for 2 images"),
        ({"data": np.zeros((2, 32, 32, 3), "f4"), "ids": [1, 2]}, "is float32; store images as an array of uint8"),
        ({"data": np.zeros((2, 100), "u1"), "ids": [1, 2]}, "has shape (2, 100)"),
        ({"data": np.zeros((0, 32, 32, 3), "u1"), "ids": []}, "has shape (0, 32, 32, 3)"),
        *(
            (
                {"data": np.zeros((2, 32, 32, 3), "u1"), "ids": [1, 2], name: [0, 1]},
                f"has '{name}' beside 'data' and 'ids', and an unlabelled set has no labels; to predict it, save it",
            )
            for name in ("labels", "fine_labels", "targets", "y", "y_test")
        ),
        ({"data": [np.zeros((32, 32, 3), "u1")] * 2, "ids": [1, 2]}, "array of uint8, as in np.stack(images)"),
        ({"data": {"red": [1, 2]}, "ids": [1, 2]}, "is dict; store images as an array of uint8"),
        ([1, 2], "it contains a list instead of a dictionary"),
        (np.zeros((2, 32, 32, 3), "u1"), "it contains an array instead of a dictionary"),
        (None, "it contains None instead of a dictionary"),
    ],
)
def test_a_wrong_unlabelled_pickle_is_refused(tmp_path: Path, content: object, complaint: str) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as error:
        read_unlabelled(tmp_path / "a.pkl")
    assert complaint in str(error.value)
    assert str(tmp_path / "a.pkl") in str(error.value)


def test_the_real_unlabelled_pickle_is_read(cifar_files: Path) -> None:
    unlabelled = read_unlabelled(cifar_files / "cifar_test_nolabel.pkl")
    assert unlabelled.images.shape == (5000, 32, 32, 3)
    assert sorted(unlabelled.ids.tolist()) == list(range(5000))
    assert unlabelled.images.mean() / 255 == pytest.approx(0.473, abs=0.005)
