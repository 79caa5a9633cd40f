"""Labelled images in an npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import dataset_builders as build
from support.opened_sources import one_line, open_quietly

from cifar_dist.data import archive_member


def test_images_and_labels_of_an_npz_are_read(tmp_path: Path) -> None:
    images = build.random_images(5)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.array([[0], [2], [1], [2], [0]]), x_test=images[:2],
             y_test=np.array([1, 1], np.uint8))  # fmt: skip
    data = open_quietly(str(tmp_path / "a.npz")).data
    assert data.classes == ("0", "1", "2")
    assert np.array_equal(data.splits["train"].images, images)
    assert data.splits["train"].labels.tolist() == [0, 2, 1, 2, 0]
    assert data.splits["test"].labels.tolist() == [1, 1]
    np.savez_compressed(tmp_path / "c.npz", x_train=images[..., 0], y_train=np.arange(5))
    grey = open_quietly(str(tmp_path / "c.npz"), 16).data.splits["train"].images
    assert grey.shape == (5, 16, 16, 3)
    assert np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (("X_train", "Y_train"), "labelled images are named x_train, with labels in y_train"),
        (("images", "targets"), "found: 'images', 'targets'; labelled images are named x_train"),
        (("data", "labels"), "has no 'ids'; an unlabelled set requires 'data' and 'ids'"),
        (("x_validation", "y_val"), "has y_val but no x_val; add the images, or remove the labels"),
    ],
)
def test_an_npz_of_other_names_says_which_are_read(tmp_path: Path, names: tuple[str, str], complaint: str) -> None:
    first, second = names
    build.write_npz(tmp_path / "a.npz", {first: build.random_images(3), second: np.arange(3)})
    assert complaint in one_line(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("arrays", "remedy"),
    [
        (
            {"x_train": np.zeros((4, 8, 8, 3), "f4")},
            "images.astype('uint8') for values from 0 to 255, or for values from 0 to 1 (255 * images).round()",
        ),
        ({"x_train": np.zeros((4, 3, 8, 8), "u1")}, "images.transpose(0, 2, 3, 1)"),
        ({"x_train": np.zeros((4, 3, 64), "u1")}, "images.reshape(-1, 3, 8, 8).transpose(0, 2, 3, 1)"),
        ({"x_train": np.zeros((4, 1, 64), "u1")}, "images.reshape(-1, 1, 8, 8).transpose(0, 2, 3, 1)"),
        ({"x_train": np.zeros((4, 64, 3), "u1")}, "images.reshape(-1, 8, 8, 3)"),
        ({"x_train": np.zeros((4, 64), "u1")}, "images.reshape(-1, 8, 8)"),
        ({"x_train": np.zeros((8, 8, 3, 4), "u1")}, "images.transpose(3, 0, 1, 2)"),
        ({"x_train": np.zeros((4, 8, 8, 4), "u1")}, "images[..., :3], without the transparency"),
        ({"y_train": np.array([0.0, 1, 0, 1])}, "is not a list of integers; store one integer per image (astype(int))"),
        ({"y_train": np.array([True, False, True, False])}, "store one integer per image (astype(int))"),
        ({"y_train": np.eye(2)[[0, 1, 0, 1]]}, "store one integer per image (argmax(1) of one-hot labels)"),
        ({"y_train": np.eye(2)[[0, 1, 0, 1]].astype(int)}, "one integer per image (argmax(1) of one-hot labels)"),
        ({"y_train": np.array(["cat", "dog", "cat", "dog"])}, "np.unique(names, return_inverse=True)"),
        ({"y_train": np.array([-1, 0, -1, 0])}, "label -1 of image 0 is negative; number the classes from 0"),
        ({"y_train": None}, "has x_train but no y_train; add the labels, or for images to predict"),
    ],
)
def test_arrays_of_another_shape_are_refused_with_the_expression_that_converts_them(
    tmp_path: Path, arrays: dict[str, np.ndarray | None], remedy: str
) -> None:
    all_arrays = {"x_train": build.random_images(4), "y_train": np.arange(4) % 2, **arrays}
    build.write_npz(tmp_path / "a.npz", {name: array for name, array in all_arrays.items() if array is not None})
    assert remedy in one_line(tmp_path / "a.npz")
    if remedy.startswith("images.reshape") or remedy.endswith("2)"):
        np.savez(tmp_path / "b.npz", x_train=eval(remedy, {"images": arrays["x_train"]}), y_train=np.arange(4) % 2)
        assert open_quietly(str(tmp_path / "b.npz")).data.splits["train"].images.shape == (4, 8, 8, 3)


@pytest.mark.parametrize("lowest", [1, 5])
def test_labels_that_do_not_begin_at_0_are_refused(tmp_path: Path, lowest: int) -> None:
    labels = np.arange(6) % 3 + lowest
    np.savez(tmp_path / "a.npz", x_train=build.random_images(6), y_train=labels)
    assert f"class 0 has no image; number the classes from 0, as in y_train = y_train - {lowest}" in one_line(
        tmp_path / "a.npz"
    )
    np.savez(tmp_path / "b.npz", x_train=build.random_images(6), y_train=labels - lowest, y_coarse=labels)
    assert open_quietly(str(tmp_path / "b.npz")).data.notes == ("passed over the other arrays: 'y_coarse'",)


@pytest.mark.parametrize("other", [np.array(["cat", "dog"]), np.array([{"made": 2026}], dtype=object)])
def test_other_arrays_are_not_read(tmp_path: Path, other: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", x_train=build.random_images(4), y_train=np.arange(4) % 2, about=other)
    assert open_quietly(str(tmp_path / "a.npz")).data.notes == ("passed over the other arrays: 'about'",)


def test_rows_are_planes_as_in_the_files_of_cifar_and_it_is_said(tmp_path: Path) -> None:
    images = build.random_images(4)
    rows = images.transpose(0, 3, 1, 2).reshape(4, -1)
    np.savez(tmp_path / "a.npz", x_train=rows, y_train=np.arange(4) % 2)
    data = open_quietly(str(tmp_path / "a.npz")).data
    assert (data.splits["train"].images == images).all()
    assert "'x_train' as the red, the green and the blue plane" in data.notes[0]


def test_an_array_may_be_larger_than_a_member_of_another_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", x_train=build.random_images(9), y_train=np.arange(9))
    monkeypatch.setattr(archive_member, "MAX_MEMBER", 10_000)
    assert len(open_quietly(str(tmp_path / "a.npz")).data.splits["train"]) == 9
    monkeypatch.setattr(archive_member, "MAX_ARRAY", 10_000)
    assert "store smaller images, or a folder of image files" in one_line(tmp_path / "a.npz")


def test_the_processes_of_a_machine_share_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``predict`` reads the array in each of them."""
    np.savez(tmp_path / "a.npz", x_train=build.random_images(9), y_train=np.arange(9))
    monkeypatch.setattr(archive_member, "MAX_MEMBER", 10_000)
    monkeypatch.setattr(archive_member, "free_memory", lambda: 9 * 32 * 32 * 3 * 5)
    assert len(open_quietly(str(tmp_path / "a.npz")).data.splits["train"]) == 9
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert "bytes, and 0.0 GiB of memory are free for each process; store smaller" in one_line(tmp_path / "a.npz")
