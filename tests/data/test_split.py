"""Images held out for val and test: how many of each class, which, and what is said where there are too few."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import dataset_builders as build

from cifar_dist.data.pack import pack
from cifar_dist.data.raw import RawSplit
from cifar_dist.data.split import SplitPart, hold_out
from cifar_dist.errors import UserError

pack_quietly = functools.partial(pack, show=False)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**31 - 1),
    shift=st.randoms(use_true_random=False),
)
def test_a_held_out_split_is_stratified_and_determined_by_its_ids(labels, fraction, seed, shift) -> None:  # type: ignore[no-untyped-def]
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    split = RawSplit(images, np.array(labels), np.arange(len(labels)))
    kept, held = hold_out(SplitPart.all_of(split), fraction, seed, "val")
    assert sorted([*kept.ids, *held.ids]) == list(range(len(labels)))
    for label in set(labels):
        count = labels.count(label)
        assert (held.labels == label).sum() == min(round(fraction * count), count - 1)
    order = list(range(len(labels)))
    shift.shuffle(order)
    again = hold_out(SplitPart.all_of(split).take(np.array(order)), fraction, seed, "val")[1]
    assert sorted(again.ids) == list(held.ids)


@pytest.mark.parametrize(("purpose", "ids"), [("val", [1, 2, 3, 6, 10, 11]), ("test", [0, 1, 2, 4, 6, 8])])
def test_which_samples_are_held_out_for_what_has_not_changed(purpose: str, ids: list[int]) -> None:
    """Frozen: a change would mix the training and validation images of data that are packed again."""
    split = RawSplit(np.zeros((12, 1, 1, 3), np.uint8), np.arange(12) % 3, np.arange(12))
    assert hold_out(SplitPart.all_of(split), 0.5, 1, purpose)[1].ids.tolist() == ids


def test_digits_are_split_70_10_20_and_the_test_split_never_changes(tmp_path: Path) -> None:
    first, second = (pack_quietly("digits", tmp_path / f"{seed}", seed=seed, codec="npy") for seed in (0, 1))
    assert {name: first.samples(name) for name in first.splits} == {"train": 1259, "val": 179, "test": 359}
    for split in first.splits:
        counts = np.bincount(first.labels(split))
        assert counts.max() - counts.min() <= 8
    assert first.keys("test") == second.keys("test")
    assert first.keys("val") != second.keys("val")
    assert first.source["name"] == "digits"
    assert len(first.shards("train")) == 2


def test_a_second_val_split_is_refused(tmp_path: Path) -> None:
    files = build.class_folder({"train/cat": 4, "train/dog": 1, "val/cat": 2}, side=4)
    source = build.write_archive(tmp_path / "a.zip", files)
    with pytest.raises(UserError, match="already has a split 'val'; drop the val fraction"):
        pack_quietly(source, tmp_path / "out", val_fraction=0.5)
    assert pack_quietly(source, tmp_path / "out").samples("val") == 2
    np.savez(tmp_path / "b.npz", data=build.random_images(2), ids=np.arange(2))
    with pytest.raises(UserError, match="has no training split"):
        pack_quietly(tmp_path / "b.npz", tmp_path / "out", val_fraction=0.5)


def test_a_default_val_split_that_would_be_empty_or_lack_a_class_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = build.labelled_npz(tmp_path / "few.npz", 6)
    assert "val" not in pack(few, tmp_path / "out").splits
    note = "note: no val split, as a val fraction of 0.1 of at most 2 images per class is not one image; hold one out"
    assert f"{note} with --val-fraction 0.5\n" in capsys.readouterr().err
    assert pack_quietly(few, tmp_path / "out", val_fraction=0.5).samples("val") == 3
    np.savez(tmp_path / "a.npz", x_train=build.random_images(12, side=6), y_train=[0] * 10 + [1] * 2)
    pack(tmp_path / "a.npz", tmp_path / "out")
    assert "note: too few images to hold one out for val: class '1'\n" in capsys.readouterr().err


def test_holding_out_leaves_an_image_of_each_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", x_train=build.random_images(35, side=6), y_train=[0] * 30 + [1] * 4 + [2])
    manifest = pack(tmp_path / "a.npz", tmp_path / "out", val_fraction=0.9)
    assert np.bincount(manifest.labels("train")).tolist() == [3, 1, 1]
    assert "note: too few images to hold one out for val: class '2'\n" in capsys.readouterr().err


@pytest.mark.parametrize("more", ["", "val_fraction = 0.2"])
def test_a_test_fraction_that_selects_nothing_is_refused(tmp_path: Path, more: str) -> None:
    """It was asked for, unlike the default fraction of val."""
    build.write_folder(tmp_path / "m", build.class_folder({"cat": 10, "dog": 10}, side=6))
    (tmp_path / "m.toml").write_text(f'name = "m"\narchive = "m"\ntest_fraction = 0.01\n{more}')
    with pytest.raises(UserError, match=r"not one image; use 0 for no test split, or at least 0\.1$"):
        pack_quietly(tmp_path / "m.toml", tmp_path / "out")


def test_a_remedy_is_an_accepted_fraction(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=build.random_images(2, side=6), y_train=[0, 1])
    with pytest.raises(UserError, match=r"at most 1 images per class is not one image; use 0 for no val split$"):
        pack_quietly(tmp_path / "a.npz", tmp_path / "out", val_fraction=0.2)
