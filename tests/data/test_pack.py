"""Packing: the same source gives the same bytes, nothing is half-written, and webdataset reads back what was packed."""

from __future__ import annotations

import functools
import json
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from support import dataset_builders as build
from webdataset import WebDataset

from cifar_dist import cli
from cifar_dist.data.image import Lossless, decode, encode
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.pack import pack
from cifar_dist.data.read import ShardReader
from cifar_dist.data.statistics import channel_statistics, pixel_counts
from cifar_dist.errors import UserError

pack_quietly = functools.partial(pack, show=False)


def webdataset_samples(manifest: Manifest, split: str) -> dict[str, dict[str, bytes]]:
    """Return the samples that webdataset reads from a split, by key."""
    urls = [str(manifest.root / shard.name) for shard in manifest.shards(split)]
    samples = list(WebDataset(urls, shardshuffle=False, empty_check=False))
    found = {sample["__key__"]: sample for sample in samples}
    assert len(found) == len(samples)
    return found


@settings(deadline=None, max_examples=12)
@given(
    samples=st.integers(2, 60),  # one training image would be one class
    test=st.integers(0, 5),
    per_shard=st.integers(1, 25),
    fraction=st.sampled_from([0.0, 0.1, 0.5]),
    codec=st.sampled_from(["png", "npy"]),
    seed=st.integers(0, 2**31 - 1),
)
def test_what_is_packed_is_read_back_by_webdataset_and_by_us(
    tmp_path_factory: pytest.TempPathFactory,
    samples: int, test: int, per_shard: int, fraction: float, codec: Lossless, seed: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("pack")
    source = build.labelled_npz(folder / "a.npz", samples, test=test)
    arrays = np.load(source)
    if not any(min(round(fraction * count), count - 1) > 0 for count in np.bincount(arrays["y_train"])):
        fraction = 0.0  # else refused: tested below
    assume(not test or not set(arrays["y_test"]).isdisjoint(arrays["y_train"]))  # else refused
    packed = pack_quietly(
        source, folder / "out", codec=codec, samples_per_shard=per_shard, val_fraction=fraction, seed=seed
    )
    manifest = Manifest.load(folder / "out")

    assert manifest.to_json() == packed.to_json()
    seen = {"train": 0, "val": 0, "test": 0}
    for split, shards in manifest.splits.items():
        assert all(shard.samples == per_shard for shard in shards[:-1])
        assert 1 <= shards[-1].samples <= per_shard
        found = webdataset_samples(manifest, split)
        assert list(found) == manifest.keys(split)
        ours = ShardReader(manifest, split).all().numpy()
        where = "test" if split == "test" else "train"
        for row, (key, sample) in enumerate(found.items()):
            image, label = arrays[f"x_{where}"][int(key)], arrays[f"y_{where}"][int(key)]
            assert np.array_equal(decode(sample[codec], codec), image)
            assert np.array_equal(ours[row], image)
            assert int(sample["cls"]) == manifest.labels(split)[row] == label
            assert set(sample) - {"__key__", "__url__", "__local_path__"} == {codec, "cls"}
        seen[split] = len(found)
    assert seen["train"] + seen["val"] == samples
    assert seen["test"] == test


def test_the_same_source_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = build.labelled_npz(tmp_path / "a.npz", 50, test=9)
    pack_quietly(source, tmp_path / "one", samples_per_shard=20)
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)  # the clock of TarWriter, tarfile and gzip
    os.utime(source, (tomorrow, tomorrow))
    before = os.umask(0o077)
    try:
        pack_quietly(source, tmp_path / "two", samples_per_shard=20)
    finally:
        os.umask(before)
    one, two = build.read_folder(tmp_path / "one"), build.read_folder(tmp_path / "two")
    assert one == two
    assert set(one) == {"manifest.json", "train-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar",
                        "test-000000.tar"}  # fmt: skip
    assert str(tmp_path) not in one["manifest.json"].decode()


def test_the_tars_are_plain_ustar_without_a_trace_of_who_made_them(tmp_path: Path) -> None:
    pack_quietly(build.labelled_npz(tmp_path / "a.npz", 5), tmp_path / "out", val_fraction=0)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.type == tarfile.REGTYPE
            assert not member.pax_headers
    data = (tmp_path / "out" / "train-000000.tar").read_bytes()
    assert data[257:265] == b"ustar\x0000"


def test_another_seed_gives_another_order_and_another_val_split(tmp_path: Path) -> None:
    source = build.labelled_npz(tmp_path / "a.npz", 300)
    first, second = (pack_quietly(source, tmp_path / f"{seed}", seed=seed) for seed in (0, 1))
    assert first.keys("train") != second.keys("train")
    assert set(first.keys("val")) != set(second.keys("val"))
    assert sorted(first.keys("train")) != first.keys("train")
    assert first.keys("val") == sorted(first.keys("val"))
    assert (first.mean, first.std) != (second.mean, second.std)  # of other training samples


def test_every_shard_of_train_has_every_class_of_a_sorted_source(tmp_path: Path) -> None:
    files = build.class_folder({f"class_{n}": 40 for n in range(4)}, side=4)
    source = build.write_archive(tmp_path / "a.zip", files)
    manifest = pack_quietly(source, tmp_path / "out", samples_per_shard=40, val_fraction=0.1)
    assert np.bincount(manifest.labels("val")).tolist() == [4] * 4
    for shard in manifest.shards("train")[:-1]:
        assert np.bincount(shard.labels, minlength=4).min() > 0


def test_cifar_is_packed_with_its_own_test_split(tmp_path: Path) -> None:
    expected = build.cifar10(tmp_path / "cifar-10-batches-py", per_batch=20)
    files = {f"cifar-10-batches-py/{k}": v for k, v in build.read_folder(tmp_path / "cifar-10-batches-py").items()}
    source = build.write_archive(tmp_path / "cifar-10-python.tar.gz", files)
    manifest = pack_quietly(source, tmp_path / "out", val_fraction=0.2)
    assert manifest.name == "cifar-10-python"
    assert manifest.source["kind"] == "cifar10-python"
    digest = manifest.source["sha256"]
    assert isinstance(digest, str)
    assert len(digest) == 64
    assert manifest.labels("test").tolist() == expected["test"][1]  # in the published order
    assert np.array_equal(ShardReader(manifest, "test").all().numpy(), expected["test"][0])
    assert manifest.samples("train") + manifest.samples("val") == 100


def test_an_unlabelled_set_has_one_split_and_no_labels(tmp_path: Path) -> None:
    images = build.random_images(7)
    np.savez(tmp_path / "hidden.npz", data=images, ids=np.array([9, 8, 7, 1, 2, 3, 123456789]))
    manifest = pack_quietly(tmp_path / "hidden.npz", tmp_path / "out")
    assert list(manifest.splits) == ["test"]
    assert manifest.classes == ()
    assert [int(key) for key in manifest.keys("test")] == [9, 8, 7, 1, 2, 3, 123456789]
    assert manifest.labels("test").tolist() == [-1] * 7
    assert all(set(sample) & {"png", "cls"} == {"png"} for sample in webdataset_samples(manifest, "test").values())
    assert np.array_equal(ShardReader(manifest, "test").all().numpy(), images)
    assert Manifest.load(tmp_path / "out").to_json() == manifest.to_json()


def test_the_statistics_are_exactly_those_of_the_training_split(tmp_path: Path) -> None:
    images = build.random_images(5000, side=3)
    mean, std = channel_statistics(pixel_counts(images))
    scaled = torch.from_numpy(images).double() / 255
    assert torch.allclose(torch.tensor(mean).double(), scaled.mean((0, 1, 2)), atol=1e-7)
    assert torch.allclose(torch.tensor(std).double(), scaled.std((0, 1, 2), correction=0), atol=1e-7)
    order = np.random.default_rng(0).permutation(5000)
    assert channel_statistics(pixel_counts(images[order])) == (mean, std)
    assert channel_statistics(pixel_counts(images[:77]) + pixel_counts(images[77:])) == (mean, std)
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert channel_statistics(pixel_counts(black)) == ((0, 0, 0), (0, 0, 0))
    manifest = pack_quietly(build.labelled_npz(tmp_path / "a.npz", 40), tmp_path / "out")
    train = ShardReader(manifest, "train").all().numpy()
    assert (manifest.mean, manifest.std) == channel_statistics(pixel_counts(train))


@pytest.mark.parametrize("codec", ["png", "npy"])
def test_an_image_is_stored_without_loss(codec: Lossless) -> None:
    image = build.random_images(1, side=17)[0]
    assert np.array_equal(decode(encode(image, codec), codec), image)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"samples_per_shard": 0}, "samples per shard is 0"),
        ({"val_fraction": 1.0}, "the val fraction is 1.0"),
        ({"val_fraction": -0.1}, "the val fraction is -0.1"),
        ({"val_fraction": 0.01}, "0.01 of at most 2 images per class is not one image; use 0 for no val split, or at"),
        ({"size": 0}, "size is 0"),
        ({"size": 5000}, "size is 5000"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    tmp_path: Path, arguments: dict[str, Any], complaint: str
) -> None:
    source = build.labelled_npz(tmp_path / "a.npz", 6)
    with pytest.raises(UserError, match=complaint):
        pack_quietly(source, tmp_path / "out", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("words", [["pack", "", "../out"], ["pack", "digits", ""], ["index", ""], ["verify", ""]])
def test_an_empty_name_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """The shell gives it for a variable that is not set."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    with pytest.raises(UserError, match=r"is empty; name .* or '\.' for the working directory"):
        cli.run(words)
    assert [path.name for path in tmp_path.rglob("*")] == ["cwd"]


def test_a_packed_dataset_is_not_a_source(tmp_path: Path) -> None:
    pack_quietly(build.labelled_npz(tmp_path / "a.npz", 6), tmp_path / "out")
    with pytest.raises(UserError, match="is already packed; check it with: cifar-dist verify"):
        pack_quietly(tmp_path / "out", tmp_path / "again")


def test_images_that_two_splits_or_classes_share_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = build.random_images(12, side=6)
    labels = np.arange(12) % 2
    arrays: dict[str, ArrayLike] = {
        "x_train": images,
        "y_train": labels,
        "x_test": images[[3, 4]],
        "y_test": labels[[3, 5]],  # the second has another class than in train
    }
    source = build.write_npz(tmp_path / "a.npz", arrays)
    pack(source, tmp_path / "out", val_fraction=0)
    said = capsys.readouterr().err
    assert "note: images of test that train has, too: 2 of 2: 'test 0', 'test 1'\n" in said
    assert "note: images that another class has, too: 1: 'test 1'\n" in said
    files = build.class_folder({"cat": 2, "dog": 2}, side=6)
    source = build.write_folder(tmp_path / "in", {**files, "dog/cat.png": next(iter(files.values()))})
    pack(source, tmp_path / "out", val_fraction=0)
    assert "note: images that another class has, too: 1: 'dog/cat.png'\n" in capsys.readouterr().err


def test_images_of_fractions_that_were_cut_to_integers_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.arange(4) % 2
    for number, scale in enumerate((255, 2)):  # the second is (images / 255).astype("uint8"), or nearly
        images = (build.random_images(4) // scale).astype(np.uint8)
        np.savez(tmp_path / "a.npz", x_train=images, y_train=labels)
        pack(tmp_path / "a.npz", tmp_path / f"out{number}")
        assert ("no pixel is brighter than 1 of 255; if the" in capsys.readouterr().err) is (scale == 255)


def test_a_class_that_no_evaluation_will_see_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = build.class_folder({"train/cat": 2, "train/dog": 2, "train/cow": 2, "test/cat": 1, "test/dog": 1}, side=6)
    pack(build.write_folder(tmp_path / "in", files), tmp_path / "out", val_fraction=0)
    assert "note: 1 of 3 classes have no test image: 'cow'\n" in capsys.readouterr().err


def test_progress_goes_to_stderr_in_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(build.labelled_npz(tmp_path / "a.npz", 40), tmp_path / "out", samples_per_shard=9, val_fraction=0)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == "packing train: 40 of 40 images"
    assert len(said.err.splitlines()) == 4
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"]["samples_per_shard"] == 9
    pack(build.write_archive(tmp_path / "b.tar", build.class_folder({"cat": 20, "dog": 20})), tmp_path / "b")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "listing b.tar: 40 files", "which takes as long as to decompress the archive"
    assert lines[4] == "reading b.tar: 40 of 40 images"


def test_a_dataset_without_training_images_is_said_to_be_for_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(build.write_folder(tmp_path / "in", build.class_folder({"val/a": 2, "val/b": 2})), tmp_path / "out")
    note = "note: no split 'train', but val: runs can be evaluated on it, and not trained\n"
    assert note in capsys.readouterr().err
