"""Which tars of a folder are found, and the split that each is of."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
from support import dataset_builders as build
from support.webdataset_tars import notes, refusal, sample, write
from support.without_rights import public_folder, without_rights

from cifar_dist.data.index import index
from cifar_dist.errors import UserError


def test_splits_by_name_or_folder_and_numbers_by_value(tmp_path: Path) -> None:
    names = ["cifar-train-10.tar", "cifar-train-9.tar", "validation/a.tar", "x_TEST_0.tar", "training.2/1.tar"]
    for name in names:
        write(tmp_path / name, [sample("0")])
    write(tmp_path / ".hidden.tar", [sample("0")])
    manifest = index(tmp_path, show=False)
    assert {split: [shard.name for shard in many] for split, many in manifest.splits.items()} == {
        "train": ["cifar-train-9.tar", "cifar-train-10.tar", "training.2/1.tar"],
        "val": ["validation/a.tar"],
        "test": ["x_TEST_0.tar"],
    }
    for path in tmp_path.rglob("*.tar"):
        path.rename(path.with_name(path.name.replace("train", "part").replace("TEST", "part")))
    write(tmp_path / "plain" / "0.tar", [sample("0")])
    assert "names no split, but other tars do; rename it to begin with train-, val- or test-" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("names", "renamed"),
    [
        (["trainset-0.tar", "testset-0.tar"], ["train-0.tar", "test-0.tar"]),
        (["cifar10trainset/0.tar", "cifar10testset/0.tar"], ["cifar10train/0.tar", "cifar10test/0.tar"]),
        (["trainA-0.tar", "testA-0.tar"], ["train-A-0.tar", "test-A-0.tar"]),
        (["petsTrain.tar", "petsVal.tar"], ["pets-train.tar", "pets-val.tar"]),
        (["train-0.tar", "eval-0.tar"], ["train-0.tar", "val-0.tar"]),
        (["train-0.tar", "Evaluation_Data/0.tar"], ["train-0.tar", "val_Data/0.tar"]),
        (["test-0.tar", "testset-0.tar"], ["test-0.tar", "test-testset-0.tar"]),  # the shorter name is taken
    ],
)
def test_a_tar_that_means_a_split_without_its_word_is_refused_with_a_name_that_works(
    tmp_path: Path, names: list[str], renamed: list[str]
) -> None:
    for seed, name in enumerate(names):
        write(tmp_path / name, [sample("0", 0, seed), sample("1", 1, 10 + seed)])
    for _ in range(sum(old != new for old, new in zip(names, renamed, strict=True))):
        message = re.match(r"(.*) names no split.*; rename it to ([^ ]*)$", refusal(tmp_path))
        assert message is not None
        target = tmp_path / message[2]
        target.parent.mkdir(exist_ok=True)
        Path(message[1]).rename(target)
    manifest = index(tmp_path, show=False)
    assert sorted(shard.name for shards in manifest.splits.values() for shard in shards) == sorted(renamed)
    assert len(manifest.splits) == len({split for split in ("train", "val", "test") if split in str(renamed)})


@pytest.mark.parametrize(
    "words", [("latest", "contest"), ("trainer", "device"), ("restrain", "value"), ("trains", "x")]
)
def test_tars_that_name_no_split_are_train_and_noted(
    tmp_path: Path, words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, word in enumerate(words):
        write(tmp_path / f"{word}-0.tar", [sample("0", 0, seed), sample("1", 1, 10 + seed)])
    assert notes(tmp_path, capsys) == ["no tar names a split: all 2 are train"]


def test_the_tars_of_a_folder_that_is_named_as_a_split_are_not_train_in_silence(tmp_path: Path) -> None:
    path = write(tmp_path / "pets" / "test" / "0.tar", [sample("0"), sample("1", 1, 1)])
    message = refusal(path.parent)
    assert message.startswith(f"{path.parent} is named 'test', but none of its tars names a split")
    assert message.endswith("; rename the tars to begin with test-, or with train- if they are")
    write(tmp_path / "pets" / "train" / "0.tar", [sample("0", 0, 2), sample("1", 1, 3)])
    command = f"index the folder above: cifar-dist index {tmp_path / 'pets'}, or rename the tars"
    assert command in refusal(path.parent)
    assert index(tmp_path / "pets", show=False).shown == "2 train, 2 test, 2 classes"
    (tmp_path / "pets" / "manifest.json").unlink()
    index(tmp_path / "pets" / "train", show=False)
    assert "cifar-dist index" not in refusal(path.parent)  # which would merge two datasets
    path.rename(path.with_name("test-0.tar"))
    assert index(path.parent, show=False).samples("test") == 2


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("train-1.tar.gz", "is compressed, and random access requires a plain tar"),
        ("val/0.TGZ", "is compressed"),
        ("train-1.tar.zst", "is compressed"),
        ("val/0.TAR", "must end in .tar, in lower case; rename it"),
        ("more/shards/train-1.tar", "is more than one folder deep; move it up, or index"),
    ],
)
def test_a_tar_that_the_manifest_would_omit_is_refused(tmp_path: Path, name: str, complaint: str) -> None:
    write(tmp_path / "train-0.tar", [sample("a"), sample("b", 1)])
    build.write_folder(tmp_path, {name: b"x"})
    message = refusal(tmp_path)
    assert message.startswith(str(tmp_path / name))
    assert complaint in message


@pytest.mark.parametrize("program", ["gzip", "bzip2", "xz"])
def test_a_compressed_tar_is_recognised_by_its_content(tmp_path: Path, program: str) -> None:
    mode = {"gzip": "w:gz", "bzip2": "w:bz2", "xz": "w:xz"}[program]
    with tarfile.open(tmp_path / "0.tar", mode) as tar:  # type: ignore[call-overload]
        tar.addfile(tarfile.TarInfo("a.png"))
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / '0.tar'} is compressed, and random access requires a plain tar; decompress")
    assert message.endswith(f"{program} -dc < 0.tar > plain.tar")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("1.tar.gz", "is compressed"),
        ("3.TAR", "must end in .tar, in lower case"),
        ("sub/2.tar", "is more than one folder deep; move it up"),
    ],
)
def test_tars_below_a_link_to_a_folder_are_not_omitted(tmp_path: Path, name: str, complaint: str) -> None:
    write(tmp_path / "elsewhere" / "0.tar", [sample("a"), sample("b", 1)])
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train").symlink_to(tmp_path / "elsewhere")
    assert index(tmp_path / "linked", show=False).samples("train") == 2
    build.write_folder(tmp_path / "elsewhere", {name: b"x"})
    message = refusal(tmp_path / "linked")
    assert message.startswith(str(tmp_path / "linked" / "train" / name))
    assert complaint in message


def test_a_link_to_a_folder_that_contains_it_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "tars" / "0.tar", [sample("a"), sample("b", 1)])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tars" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "tars")
    with pytest.raises(UserError, match=r"tars/more/back is a link to a folder that contains it; remove the link"):
        index(tmp_path / "tars", show=False)


@pytest.mark.parametrize(
    ("link", "target"), [("train-2", "train"), ("train/1.tar", "0.tar"), ("val-0.tar", "train/0.tar")]
)
def test_two_names_of_one_tar_are_refused(tmp_path: Path, link: str, target: str) -> None:
    """Its samples would count twice, or be in two splits."""
    write(tmp_path / "train" / "0.tar", [sample("a"), sample("b", 1)])
    (tmp_path / link).symlink_to(target)
    assert "are one file; remove the link to it, or to its folder" in refusal(tmp_path)


def test_a_folder_that_cannot_be_read_is_refused() -> None:
    """Its tars would be missing from the dataset."""
    with public_folder() as root:
        write(root / "train-0.tar", [sample("0")])
        write(root / "more" / "train-1.tar", [sample("0")])
        (root / "more").chmod(0)
        with without_rights():
            assert refusal(root) == f"{root / 'more'} cannot be read: Permission denied"
        (root / "more").chmod(0o755)
