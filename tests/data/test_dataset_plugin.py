"""A function that returns a dataset: what it may return, and its mistakes in one line before anything is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.opened_sources import one_line
from support.plug_in_package import write_package

from cifar_dist import cli
from cifar_dist.config.plugin_code import folder_checksum
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.pack import pack
from cifar_dist.files.checksums import sha256

PLUGIN = """
import numpy as np
from cifar_dist.data.raw import RawDataset, RawSplit

images = np.zeros((20, 16, 16, 3), np.uint8)
labels, ids = np.arange(20) % 2, np.arange(20)
good = RawSplit(images, labels, ids)

def read():
    return RawDataset("mine", ("a", "b"), {})
"""


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ("{}", "no sample; give at least one of train, val and test"),
        ("{'train': good, 'holdout': good}", "there is no 'holdout'; use train, val, test"),
        ("{'train': good, 'val': RawSplit(images[:0], labels[:0], ids[:0])}", "'val' has no sample; leave it out"),
        ("{'train': good, 'test': RawSplit(images[:, :8], labels, ids)}", "different shapes"),
        ("{'train': RawSplit(images / 255, labels, ids)}", "images of RawSplit are float64 [20, 16, 16, 3]"),
        ("{'train': RawSplit(images.transpose(0, 3, 1, 2), labels, ids)}", "are uint8 [20, 3, 16, 16]; give uint8"),
        ("{'train': RawSplit(images.tolist(), labels, ids)}", "are list; give uint8 [samples, height, width, 3]"),
        ("{'train': RawSplit(images, labels / 2, ids)}", "labels of RawSplit are float64 [20]; give int64 [20]"),
        ("{'train': RawSplit(images, labels[:, None], ids)}", "labels of RawSplit are int64 [20, 1]; give int64 [20]"),
        ("{'train': RawSplit(images, labels, ids[1:])}", "ids of RawSplit are int64 [19]; give int64 [20]"),
        ("{'train': RawSplit(images, labels, ids // 2)}", "0 occurs more than once; give each image its own id"),
        ("{'train': RawSplit(images, labels, ids.astype('u8') + 2**63)}", "contains 9223372036854775827; use integers"),
        (
            "{'train': RawSplit(images[:, :, :0], labels, ids)}",
            "are uint8 [20, 16, 0, 3]; give 1 to 4096 pixels a side",
        ),
        ("{'train': RawSplit(np.zeros((20, 1, 4097, 3), 'u1'), labels, ids)}", "give 1 to 4096 pixels a side"),
        ("{'train': good}, names={'train': ('a.png',)}", "'train' has the ids 0 to 19 for 1 names; give a name"),
        ("{'train': RawSplit(images, labels, ids - 1)}, names={'train': ('a',) * 20}", "the ids -1 to 18 for 20 names"),
        ("{'train': RawSplit(images, labels + 5, ids)}", "'train' has the labels 5 to 6 for 2 classes"),
        ("{'train': good, 'test': RawSplit(images, labels - 1, ids)}", "'test' has the labels -1 to 0 for 2 classes"),
        ("{'train': RawSplit(images, ids * 0 - 1, ids)}", "'train' has no labels, all are -1, and training requires"),
    ],
)
def test_mistakes_of_a_dataset_function_are_one_line_with_its_name(tmp_path: Path, splits: str, says: str) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN.replace("{}", splits))
    message = one_line(f"{plugin}:read")
    assert message.startswith(f"{plugin}:read: ")
    assert says in message


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ("('a', 'a')", "classes of RawDataset: 'a' occurs more than once; give each class its own name"),
        (r"('\u00e9', 'e\u0301')", "classes of RawDataset: '\u00e9' occurs more than once"),
        ("(0, 1)", "classes of RawDataset: 0 is int; give each class a name"),
    ],
)
def test_classes_of_a_dataset_function_have_distinct_names(tmp_path: Path, classes: str, says: str) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN.replace("{}", "{'train': good}").replace('("a", "b")', classes))
    assert says in one_line(f"{plugin}:read")


def test_views_and_other_integers_give_the_same_dataset(tmp_path: Path) -> None:
    shards = []
    for name, split in (
        ("plain", "RawSplit(images, labels, ids)"),
        ("view", "RawSplit(images.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1), labels, ids)"),
        ("types", "RawSplit(images, labels.astype('u8'), ids.astype('i4'))"),
        ("unsigned", "RawSplit(images, labels.astype('u1'), ids.astype('u8'))"),
    ):
        plugin = tmp_path / f"{name}.py"
        fill = "images[:] = np.arange(768).reshape(16, 16, 3) % 251"
        plugin.write_text(PLUGIN.replace("{}", f"{{'train': {split}}}") + f"\n{fill}\n")
        shards.append(pack(f"{plugin}:read", tmp_path / name, val_fraction=0.5).fingerprint)
    assert len(set(shards)) == 1


def test_a_split_without_labels_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "plugin.py"
    hidden = "RawSplit(images[:4] + 1, np.full(4, -1), ids[:4])"
    unique = "images[:] = ids[:, None, None, None]"
    splits = f"{{'train': good, 'val': {hidden}, 'test': {hidden}}}"
    plugin.write_text(PLUGIN.replace("{}", splits) + f"\n{unique}\n")
    assert cli.run(["pack", f"{plugin}:read", str(tmp_path / "out")]) == 0
    packed = Manifest.load(tmp_path / "out")
    assert [packed.is_labelled(split) for split in ("train", "val", "test")] == [True, False, False]
    assert "another class" not in capsys.readouterr().err  # the labels of copies do not contradict each other


def test_the_manifest_has_the_checksum_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file, or of all files of a package."""
    site = write_package(tmp_path / "site")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    monkeypatch.delitem(sys.modules, "plugpkg", raising=False)  # of another folder
    code = PLUGIN.replace("{}", "{'train': good}") + "\nimages[:] = ids[:, None, None, None]\n"
    file = site / "plugpkg" / "images.py"
    file.write_text(code)
    pack(f"{file}:read", tmp_path / "of_file", val_fraction=0.5)
    assert Manifest.load(tmp_path / "of_file").source["sha256"] == sha256(file)
    pack("plugpkg.images:read", tmp_path / "of_package", val_fraction=0.5)
    assert Manifest.load(tmp_path / "of_package").source["sha256"] == folder_checksum(site / "plugpkg")
