"""The ID,Labels CSV has the ids and labels of the data's source."""

from __future__ import annotations

import csv
import os
import pickle
import random
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cifar_dist.data.manifest import INDEXED, Manifest
from cifar_dist.data.pack import pack
from cifar_dist.errors import UserError
from cifar_dist.evaluation.labels_csv import class_labels, ids_of_names, natural_order, sample_ids, write_submission


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


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4, unique=True))
@example([-1, 5, 10**18 + 3])
@example([5, -(2**63), 2**63 - 1])
def test_the_ids_of_a_pickle_are_the_same_with_and_without_packing(ids: list[int]) -> None:
    with TemporaryDirectory() as folder:
        source, out = Path(folder, "own.pkl"), Path(folder, "own")
        source.write_bytes(pickle.dumps({"data": np.zeros((len(ids), 8, 8, 3), np.uint8), "ids": np.array(ids)}))
        pack(source, out, show=False)
        assert sample_ids(Manifest.load(out), "test") == ids


def test_one_row_per_id_in_the_order_given(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    write_submission(out, [17, 3, -5], [3, 0, 9])
    assert out.read_bytes() == b"ID,Labels\n17,3\n3,0\n-5,9\n"


@settings(deadline=None)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=50)
    | st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=50),
    st.randoms(),
)
@example(["a\rb.png", 'a"b.png', "a\nb.png", "a,b.png"], random.Random(0))
def test_what_a_reader_finds_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int] | list[str], draw: random.Random
) -> None:
    labels = [draw.randrange(100) for _ in ids]
    out = tmp_path_factory.getbasetemp() / "submission.csv"
    write_submission(out, ids, labels)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["ID"], int(row["Labels"])) for row in rows] == list(zip(map(str, ids), labels, strict=True))


def test_a_duplicate_id_is_refused_and_the_old_file_is_kept(tmp_path: Path) -> None:
    """Immediately, even among very many."""
    out = tmp_path / "out.csv"
    write_submission(out, [1], [2])
    ids = [*range(300_000), 299_998]
    with pytest.raises(UserError, match="the ID 299998 occurs more than once in the input"):
        write_submission(out, ids, [0] * len(ids))
    assert out.read_text() == "ID,Labels\n1,2\n"


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode("cat/caf\u00e9.png".encode("latin-1"))
    write_submission(tmp_path / "out.csv", [name, "caf\u00e9.png"], ["gr\u00fcn", name])
    written = (tmp_path / "out.csv").read_text(encoding="utf-8")
    assert written == "ID,Labels\ncat/caf\\udce9.png,gr\u00fcn\ncaf\u00e9.png,cat/caf\\udce9.png\n"


@pytest.mark.parametrize("place", ["nowhere/out.csv", "file/out.csv", "folder"])
def test_an_unwritable_path_is_reported(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        write_submission(tmp_path / place, [1], [2])
    assert str(tmp_path / place) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
