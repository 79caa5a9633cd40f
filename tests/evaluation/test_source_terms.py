"""Results use the ids and labels of the data's source."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_dist.data.manifest import INDEXED, Manifest
from cifar_dist.data.pack import pack
from cifar_dist.evaluation.source_terms import class_labels, ids_of_names, natural_order, sample_ids


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["x/1.png", "x/10.png", "x/2.png"], [1, 10, 2]),
        (["cat/0007.jpg", "dog/0008.jpg"], [7, 8]),
        (["cat/img_7.png", "dog/img_8.png"], ["img_7.png", "img_8.png"]),
        (["cat/000.png", "dog/000.png"], ["cat/000.png", "dog/000.png"]),
        (["1.png", "\u0662.png"], ["1.png", "\u0662.png"]),  # an Arabic two
    ],
)
def test_ids_are_the_numbers_in_file_names_else_the_names(names: list[str], ids: list[int] | list[str]) -> None:
    assert ids_of_names(names) == ids


def test_numeric_names_sort_by_number() -> None:
    ordered = ["0.png", "2.png", "10.png", "9" * 5000, "a9", "a010", "a11.png", "a11b"]
    assert sorted([*ordered[4:], *ordered[:4]], key=natural_order) == ordered


def test_a_packed_folder_keeps_the_names_of_its_files_through_hold_out_and_permutation(tmp_path: Path) -> None:
    """Each image is as bright as its number."""
    for number in range(20):
        folder = tmp_path / "in" / ("north" if number < 10 else "south")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number,) * 3).save(folder / f"{number}.png")
    pack(tmp_path / "in", tmp_path / "out", codec="npy", val_fraction=0.3, samples_per_shard=6, show=False)
    packed = Manifest.load(tmp_path / "out")
    for split in ("train", "val"):
        pixels = [
            np.memmap(tmp_path / "out" / shard.name, mode="r")[offset + size - 1]
            for shard in packed.shards(split)
            for offset, size in zip(shard.image_offset, shard.image_size, strict=True)
        ]
        assert sample_ids(packed, split) == [int(pixel) for pixel in pixels]
    assert class_labels(packed, [1, 0], "auto") == ["south", "north"]
    assert class_labels(packed, [1, 0], "index") == [1, 0]


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ({"test-0.tar": ["0001", "0002"], "test-1.tar": ["0003"]}, [1, 2, 3]),
        (
            {"test-0.tar": ["0001", "0002"], "test-1.tar": ["0001"]},
            ["test-0.tar/0001", "test-0.tar/0002", "test-1.tar/0001"],
        ),
        (
            {"test.tar": ["a/1", "b/1"], "test/a.tar": ["1", "b/1"]},
            ["test.tar/a/1", "test.tar/b/1", "test/a.tar/1", "test/a.tar/b/1"],
        ),
    ],
)
def test_keys_that_repeat_in_several_shards_get_the_name_of_their_shard(
    digits: Path, keys: dict[str, list[str]], ids: list[int] | list[str]
) -> None:
    packed = Manifest.load(digits)
    (shard, *_) = packed.shards("test")
    shards = tuple(replace(shard, name=name, keys=tuple(of_shard)) for name, of_shard in keys.items())
    indexed = replace(packed, source={"kind": INDEXED}, splits={"test": shards})
    assert sample_ids(indexed, "test") == ids
    assert len(set(ids)) == len(ids)


def test_cifar_classes_are_numbers_unless_names_are_requested(digits: Path) -> None:
    packed = Manifest.load(digits)
    assert class_labels(packed, [3], "auto") == [3]
    assert class_labels(packed, [3], "name") == [packed.classes[3]]


def test_the_ids_of_a_pickle_are_the_same_with_and_without_packing(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    ids = [-1, 5, 10**18 + 3]
    (tmp_path / "own.pkl").write_bytes(pickle.dumps({"data": images, "ids": np.array(ids)}))
    pack(str(tmp_path / "own.pkl"), tmp_path / "own", show=False)
    assert sorted(sample_ids(Manifest.load(tmp_path / "own"), "test")) == sorted(ids)
