"""Labels of another dataset are matched with the run's classes by name; those of the run's own shards are its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.small_packed import small_packed

from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError
from cifar_dist.evaluation.data_matching import labels_as_trained

TRAINED = ("apple", "fig", "pear", "plum")


def trained_on_other_data(packed: Manifest, classes: tuple[str, ...]) -> Manifest:
    return replace(packed, classes=classes, splits={"train": packed.splits["train"]})


def test_classes_in_another_order_and_extra_classes_are_matched_by_name(tmp_path: Path) -> None:
    packed = small_packed(tmp_path, "npy")
    run = trained_on_other_data(packed, (*TRAINED, "quince"))
    other = replace(packed, classes=("plum", "pear", "fig", "apple"))
    assert labels_as_trained(other, "test", run).tolist() == [3 - label for label in packed.labels("test")]
    assert labels_as_trained(replace(packed, classes=TRAINED), "test", run).tolist() == packed.labels("test").tolist()


def test_images_without_labels_have_none_whatever_the_classes_are_called(tmp_path: Path) -> None:
    packed = small_packed(tmp_path, "npy")
    unlabelled = tuple(replace(shard, labels=np.full_like(shard.labels, -1)) for shard in packed.shards("test"))
    other = replace(packed, classes=("plum", "pear", "fig", "apple"), splits={"test": unlabelled})
    labels = labels_as_trained(other, "test", trained_on_other_data(packed, TRAINED))
    assert labels.tolist() == [-1] * packed.samples("test")


def test_an_unknown_class_is_refused_only_if_the_split_has_it(tmp_path: Path) -> None:
    packed = small_packed(tmp_path, "npy")
    run = trained_on_other_data(packed, TRAINED)
    with pytest.raises(UserError, match=r"test has images of the class 'lime', but .* on the classes 'apple', 'fig', "):
        labels_as_trained(replace(packed, classes=("apple", "lime", "pear", "plum")), "test", run)
    named_only = replace(packed, classes=(*TRAINED, "lime"))
    assert labels_as_trained(named_only, "test", run).tolist() == packed.labels("test").tolist()


@pytest.mark.parametrize("renamed", [("fig", "apple", "pear", "plum"), ("a", "b", "c", "d"), (*TRAINED, "quince")])
def test_the_classes_of_the_shards_that_were_trained_on_may_be_renamed(
    tmp_path: Path, renamed: tuple[str, ...]
) -> None:
    """``index --classes`` with a corrected list: every label still means what the run learnt."""
    packed = small_packed(tmp_path, "npy")
    now = replace(packed, classes=renamed)
    labels = labels_as_trained(now, "test", replace(packed, classes=TRAINED))
    assert labels.tolist() == packed.labels("test").tolist()
