"""No image is silently omitted from a dataset, and no folder is packed as a dataset that its owner did not mean."""

from __future__ import annotations

import re
import shutil
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support import dataset_builders as build

from cifar_dist import cli
from cifar_dist.data.archives import list_members
from cifar_dist.data.image_layout import ImageLayout, find_layout
from cifar_dist.data.index import index
from cifar_dist.data.label_files import label_tables
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.pack import pack
from cifar_dist.data.read import ShardReader
from cifar_dist.errors import UserError

SOURCE = Path("data/mine")


def layout(*names: str, skip: bool = False) -> ImageLayout:
    return find_layout(SOURCE, names, skip_unusable=skip)


def refusal(*names: str, skip: bool = False) -> str:
    with pytest.raises(UserError) as error:
        layout(*names, skip=skip)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["a/0.png", "b/0.heic", "b/1.HEIC"],
            "2 images in a format that is not read, .heic: 'b/0.heic', 'b/1.HEIC'; convert them to PNG, or skip with "
            "--skip-unusable",
        ),
        (["a/0.png", "b/0.png", "b/1.tiff"], "1 image in a format that is not read, .tiff: 'b/1.tiff'"),
        (["a/0.png", "b/0.png", "c/"], "no images in 1 class folder 'c'; delete it, or skip it with --skip-unusable"),
        (["train/a/0.png", "train/b/", "val/b/1.png"], "no images in 1 class folder 'train/b'"),
        (["x/y/train/a/0.png", "x/y/val/a/0.png", "x/y/test/"], "no images in 1 class folder 'x/y/test'"),
        (
            ["a/0.png", "b/0.png", "c/0001", "c/0002"],
            "no images in 1 class folder 'c' (2 files not named as an image: 'c/0001', 'c/0002'); delete it",
        ),
        (["a/0.png", "b/more/0.png", "b/more/1.png"], "2 of 3 images are not at CLASS/FILE: 'b/more/0.png'"),
        (["train/a/0.png", "train/b/0.png", "extra/c/0.png"], "'extra/c/0.png' is not at SPLIT/CLASS/FILE"),
    ],
)
def test_images_that_would_be_ignored_are_refused_and_can_be_skipped(names: list[str], message: str) -> None:
    assert message in refusal(*names)
    skipped = layout(*names, skip=True)
    assert skipped.images
    assert any(note.startswith("skipped: ") for note in skipped.notes)


def test_no_option_packs_an_empty_dataset() -> None:
    assert "in a format that is not read, .nef, .tga" in refusal("a/0.nef", "b/0.tga", skip=True)
    assert "create a folder for each class" in refusal("0.png", "1.png", skip=True)


def test_other_files_are_counted_and_named() -> None:
    names = [f"a/{n}.xml" for n in range(5)]
    found = layout("a/0.png", "b/0.jfif", *names, "labels.csv")
    assert found.notes == (
        "passed over 6 files not named as an image: 'a/0.xml', 'a/1.xml', 'a/2.xml' and 3 more",
        "images of several formats: 1 .png, 1 .jfif",
    )


@pytest.mark.parametrize(
    ("folder", "split"),
    [("Training", "train"), ("TRAIN", "train"), ("validation", "val"), ("Dev", "val"), ("TESTING", "test")],
)
def test_a_split_folder_may_have_any_common_name(folder: str, split: str) -> None:
    other = "train" if split != "train" else "val"
    found = layout(f"set/{folder}/a/0.png", f"set/{folder}/b/0.png", f"set/{other}/a/1.png")
    assert set(found.splits) == {split, other}
    assert found.class_names == ("a", "b")


def test_a_class_may_be_named_valid() -> None:
    found = layout("valid/0.png", "invalid/0.png")
    assert (found.class_names, set(found.splits)) == (("invalid", "valid"), {"train"})


def test_two_folders_for_one_split_are_refused() -> None:
    message = refusal("train/a/0.png", "val/a/0.png", "valid/a/0.png")
    assert "the folders 'val', 'valid' are all val; merge or rename them" in message


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (["Train/0.jpg", "Test/1.jpg"], "create a folder for each class, as in Train/CLASS/0.jpg"),
        (
            ["train/0.png", "sample.csv", "trainLabels.csv"],
            "('trainLabels.csv' may say which; docs/data.md has a script that sorts by it)",
        ),
        (["train/a/0.png", "train/b/0.png", "test/7.png"], "as in test/CLASS/7.png, or skip it with --skip-unusable"),
        (["train/0.png", "bus/1.png"], "'train' is read as a split; if it is a class, rename it"),
        (["train/animals/a/0.png", "train/animals/b/0.png"], "'train/animals/b/0.png'; move them up"),
        (
            [f"{name}/{split}/0.png" for name in ("cat", "dog") for split in ("train", "test")],
            "; swap the two levels, as test/cat/0.png",
        ),
        (["pets/cat/Train/0.png", "pets/dog/Train/0.png"], "; swap the two levels, as pets/Train/cat/0.png"),
        (["train/dog/0.png", "cat/train/0.png"], "; swap the two levels, as train/cat/0.png, or skip it with"),
        (
            ["training_set/cats/1.png", "test_set/cats/1.png"],
            "; rename training_set to train and test_set to test",
        ),
        (["Eval-Data/cats/1.png", "TrainImages/cats/1.png"], "; rename TrainImages to train and Eval-Data to val"),
        (["eval/cats/1.png", "train/cats/1.png"], "; rename eval to val, or skip it with"),
        (
            ["trn/cats/1.png", "tst/cats/1.png", "tst/dogs/1.png"],
            "; if 'trn', 'tst' are splits, rename them to train, val or test; if not, move them",
        ),
        (
            ["train/cats/1.png", "holdout/cats/1.png"],
            "; if 'holdout' is a split, rename it to train, val or test; if not, move it, or skip it with",
        ),
        (["training_set/cats/1.png", "test_set/1.png"], "; rename training_set to train, or skip it with"),
        (
            ["training_set/1.png", "test_set/1.png"],
            "'test_set', 'training_set' would be read as classes; rename training_set to train and test_set to test",
        ),
        (
            ["train2017/1.jpg", "val2017/1.jpg", "annotations/instances_train2017.json", "annotations/"],
            "'train2017', 'val2017' would be read as classes; rename train2017 to train and val2017 to val",
        ),
        (["0.png", "1.png"], "2 of 2 images are not at CLASS/FILE: '0.png', '1.png'; create a folder for each class"),
    ],
)
def test_images_without_class_folders_say_what_to_do(names: list[str], remedy: str) -> None:
    assert remedy in refusal(*names)


def test_images_that_may_have_no_classes_name_the_way_to_predict_them() -> None:
    way = f"; to predict images without classes: cifar-dist predict RUN {SOURCE} --out FILE.csv"
    assert refusal("0.png", "1.png").endswith(way)
    for names in (["0.png", "1.png", "trainLabels.csv"], ["0.png", "cat/1.png"], ["train/0.png"]):
        assert way not in refusal(*names)


def test_the_folder_of_one_class_names_the_folder_above(tmp_path: Path) -> None:
    folder = build.write_folder(tmp_path / "animals", build.class_folder({"cat": 2, "dog": 1})) / "cat"
    with pytest.raises(UserError, match=f"pack the one above it, {tmp_path / 'animals'}"):
        pack(folder, tmp_path / "out", show=False)


def test_classes_named_by_numbers_are_in_their_order() -> None:
    assert layout(*(f"{n}/0.png" for n in range(12))).class_names == tuple(str(n) for n in range(12))
    assert layout("007/0.png", "10/0.png", "9/0.png").class_names == ("007", "9", "10")
    assert layout("10/0.png", "9/0.png", "x/0.png").class_names == ("10", "9", "x")


@pytest.mark.parametrize("name", ["\u00e5ngstr\u00f6m", "\u30d1\u30f3", "\uac00"])
def test_the_unicode_forms_of_a_name_are_one_class(name: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    found = layout(f"train/{decomposed}/0.png", "train/z/0.png", f"val/{composed}/0.png")
    assert set(found.class_names) == {composed, "z"}
    assert "merged the class folders that differ only in their Unicode form" in found.notes[0]


@pytest.mark.parametrize(("first", "second"), [("Cat", "cat"), ("7", "07"), ("big cat", "big cat "), ("\uff21", "A")])
def test_classes_that_differ_only_in_spelling_are_refused(first: str, second: str) -> None:
    names = [f"train/{first}/0.png", "train/z/0.png", f"test/{second}/0.png"]
    assert "differ only in spelling; rename one of them" in refusal(*names)
    both = layout(*names, f"train/{second}/1.png")  # letters A and a, for example, are both in train
    found = "', '".join(sorted([first, second]))
    assert both.notes == (f"classes that differ only in spelling: '{found}'",)


def test_test_images_without_classes_are_for_predict(tmp_path: Path) -> None:
    files = {**build.class_folder({"train/a": 2, "train/b": 2}), "test/7.png": b""}
    source = build.write_folder(tmp_path / "in", files)
    later = f"or skip it with --skip-unusable and predict it later: cifar-dist predict RUN {source}/test --out FILE.csv"
    with pytest.raises(UserError, match=later):
        pack(source, tmp_path / "out", show=False)
    shutil.rmtree(source / "train")
    with pytest.raises(UserError, match=r"test/CLASS/7\.png, or predict it later: cifar-dist predict RUN"):
        pack(source, tmp_path / "out", show=False)


def test_unsorted_train_and_test_images_are_both_told_where_to_go(tmp_path: Path) -> None:
    """As Kaggle distributes CIFAR-10."""
    files = {
        f"{split}/{n}.png": build.image_file(build.random_images(1, n)[0])
        for split in ("train", "test")
        for n in range(4)
    }
    source = build.write_folder(tmp_path / "in", {**files, "trainLabels.csv": b"id,label\n"})
    with pytest.raises(UserError) as error:
        pack(source, tmp_path / "out", show=False)
    assert str(error.value).endswith(
        "; create a folder for each class, as in train/CLASS/0.png ('trainLabels.csv' may say which; "
        "docs/data.md has a script that sorts by it); then skip 4 test "
        f"images without a class with --skip-unusable and predict them later: cifar-dist predict RUN {source}/test "
        "--out FILE.csv"
    )
    for n in range(4):
        (source / "train" / "ab"[n % 2]).mkdir(exist_ok=True)
        (source / "train" / f"{n}.png").rename(source / "train" / "ab"[n % 2] / f"{n}.png")
    assert pack(source, tmp_path / "out", val_fraction=0, skip_unusable=True, show=False).shown == "4 train, 2 classes"


def test_nothing_is_skipped_that_leaves_no_training_images() -> None:
    message = refusal("train/a/x/0.png", "train/b/x/0.png", "val/c/0.png", "test/c/0.png")
    assert message.endswith("'train/b/x/0.png'; move them up")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        # As TinyImageNet is distributed.
        (["train/n0/images/0.png", "train/n1/images/0.png", "val/images/0.png", "test/images/0.png"], "; move them up"),
        (["train/a/0.png", "train/b/0.png", "val/a/x/0.png"], "'val/a/x/0.png' is not at .*; move it up"),
        (["train/a/0.tif", "train/b/0.tif", "val/a/0.png"], "in a format that is not read, .*; convert them to PNG"),
    ],
)
def test_no_split_loses_all_its_images(names: list[str], says: str) -> None:
    """And the message does not say to skip them."""
    for skip in (False, True):
        assert re.search(f"{says}$", refusal(*names, skip=skip))


def test_no_split_loses_all_its_images_to_damage(tmp_path: Path) -> None:
    files = build.class_folder({"train/a": 2, "train/b": 2, "val/a": 2})
    for name in files:
        if name.startswith("train"):
            files[name] = b"damaged"
    source = build.write_folder(tmp_path / "in", files)
    with pytest.raises(UserError, match=r"none of the 4 images of train can be used; the first .*; create or download"):
        pack(source, tmp_path / "out", skip_unusable=True, show=False)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_a_class_of_train_is_refused_with_what_may_say_which(tmp_path: Path, split: str) -> None:
    """As TinyImageNet is distributed."""
    files = build.class_folder({"train/a": 3, "train/b": 3, f"{split}/images": 2})
    tables = {f"{split}/{split}_annotations.txt": b"", "train/labels.csv": b"", "words.txt": b""}
    source = build.write_folder(tmp_path / "in", {**files, **tables})
    with pytest.raises(UserError) as error:
        pack(source, tmp_path / "out", show=False)
    later = "; or move them elsewhere and predict them later: cifar-dist predict RUN FOLDER --out FILE.csv"
    assert str(error.value) == (
        f"{source}: '{split}/images' is not a class of train; sort its images into the folders of train, "
        f"{split}/CLASS/FILE ('{split}/{split}_annotations.txt' may say which; "
        f"docs/data.md has a script that sorts by it){later if split == 'test' else ''}"
    )
    (source / split / "a").mkdir()
    (source / split / "images" / "0000.png").rename(source / split / "a" / "0.png")
    assert pack(source, tmp_path / "out", show=False).classes == ("a", "b", "images")  # noted


def webdataset_folder(labels: str = "cls") -> dict[str, bytes]:
    shards = build.class_folder({"00000": 3, "00001": 3}, side=8)
    return dict(sorted({**shards, **{name.replace("png", labels): b"0" for name in shards}}.items()))


@pytest.mark.parametrize("suffix", ["", ".tar", ".zip"])
def test_labels_in_cls_files_are_not_ignored(tmp_path: Path, suffix: str) -> None:
    write = build.write_archive if suffix else build.write_folder
    source = write(tmp_path / f"in{suffix}", webdataset_folder())
    with pytest.raises(UserError) as error:
        pack(source, tmp_path / "out", show=False)
    folder = tmp_path if suffix == ".tar" else "FOLDER"
    assert "the labels are in 6 .cls files, such as '00000/0000.cls'" in str(error.value)
    assert f"a WebDataset tar stays where it is: cifar-dist index {folder}; or move each" in str(error.value)
    if suffix == ".tar":
        assert index(tmp_path, show=False).classes == ("0",)
    few = write(tmp_path / f"few{suffix}", {**webdataset_folder("x"), "00000/0000.cls": b"0"})
    assert pack(few, tmp_path / "out", show=False).classes == ("00000", "00001")


@pytest.mark.parametrize("suffix", ["json", "txt"])
def test_files_beside_the_images_that_may_hold_labels_are_noted(suffix: str) -> None:
    note = f"6 .{suffix} files beside the images may hold their labels, but the classes are the folders"
    assert note in layout(*webdataset_folder(suffix)).notes
    assert len(layout("a/0.png", "b/0.png", "b/1.png", f"a/0.{suffix}", f"a/notes.{suffix}").notes) == 1


@pytest.mark.parametrize(("content", "found"), [({}, "is empty"), ({"inner.zip": b"PK"}, "contains only 'inner.zip'")])
def test_an_archive_without_images_is_refused_with_its_contents(
    tmp_path: Path, content: dict[str, bytes], found: str
) -> None:
    path = build.write_archive(tmp_path / "a.zip", content)
    with pytest.raises(UserError, match=f"a.zip {found}; expected the files of a CIFAR archive"):
        pack(path, tmp_path / "out", show=False)


def test_arrays_of_other_formats_are_refused_with_the_one_that_is_read() -> None:
    """As of SVHN, and of a dataset of Hugging Face."""
    for name in ("train_32x32.mat", "data/train-0.parquet"):
        assert "; for other formats save the arrays, images in uint8 and labels from 0: np.savez(" in refusal(name)


def images(packed: Manifest) -> dict[str, np.ndarray]:
    """Return the training images by file name."""
    return dict(zip(packed.shards("train")[0].names, ShardReader(packed, "train").all().numpy(), strict=True))


def test_images_that_cannot_be_decoded_are_refused_and_can_be_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = build.class_folder({"train/a": 3, "train/b": 3, "val/a": 1})
    page, half = b"<!DOCTYPE html>", files["train/b/0001.png"][:90]
    source = build.write_folder(tmp_path / "in", {**files, "train/a/0001.png": page, "train/b/0001.png": half})
    with pytest.raises(UserError, match=r"'train/a/0001.png' is not an intact .*, or skip it with --skip-unusable"):
        pack(source, tmp_path / "out", show=False)
    packed = pack(source, tmp_path / "out", skip_unusable=True)
    note = "skipped: 2 of 7 images that cannot be used: 'train/a/0001.png', 'train/b/0001.png'; the first is not an"
    assert note in capsys.readouterr().err
    (train,) = packed.shards("train")
    assert sorted(train.names) == ["train/a/0000.png", "train/a/0002.png", "train/b/0000.png", "train/b/0002.png"]
    whole = pack(build.write_folder(tmp_path / "whole", files), tmp_path / "whole-out", show=False)
    assert all(np.array_equal(pixels, images(whole)[name]) for name, pixels in images(packed).items())


def test_a_table_of_labels_is_that_of_training_and_no_sample_of_a_submission() -> None:
    """As of a Kaggle competition: the classes of a sample submission are dummies."""
    assert label_tables(["sample_submission.csv"]) == ()
    assert label_tables(["sample_submission.csv", "test.csv", "train.csv"]) == ("train.csv", "test.csv")
    assert label_tables(["a.csv", "train.csv", "data/labels.csv"])[0] == "data/labels.csv"


def test_a_folder_of_an_archive_names_the_command_for_that(tmp_path: Path) -> None:
    source = build.write_folder(tmp_path / "in put", {"images.zip": b"", "notes.txt": b""})
    with pytest.raises(UserError) as error:
        pack(source, tmp_path / "out", show=False)
    command = f"cifar-dist pack '{source}/images.zip' shards/NAME"
    assert str(error.value) == f"{source} has no images, but 'images.zip'; use the archive itself: {command}"


def test_a_folder_of_which_all_images_were_skipped_is_not_called_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = build.class_folder({"train/a": 2, "train/b": 2, "test": 2})
    pack(build.write_folder(tmp_path / "in", files), tmp_path / "out", val_fraction=0, skip_unusable=True)
    (skipped,) = re.findall("note: skipped: (.*)", capsys.readouterr().err)
    assert skipped.startswith("2 of 6 images")


def test_a_training_split_of_one_class_is_refused(tmp_path: Path) -> None:
    source = build.write_folder(tmp_path / "in", build.class_folder({"images": 3}))
    np.savez(tmp_path / "a.npz", x_train=build.random_images(4), y_train=np.zeros(4, int))
    for path in (source, tmp_path / "a.npz"):
        with pytest.raises(UserError, match=r"training images are in one class, '(images|0)'"):
            pack(path, tmp_path / "out", show=False)
    (source / "labels.csv").touch()
    with pytest.raises(UserError, match=r"CLASS/FILE.png \('labels.csv' may say which; docs/data.md has a script"):
        pack(source, tmp_path / "out", show=False)
    test = build.write_folder(tmp_path / "test", build.class_folder({"test/cat": 3}))
    assert pack(test, tmp_path / "out", show=False).samples("test") == 3  # to evaluate on


def test_pack_notes_the_classes_without_training_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = build.class_folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/c": 1})
    files["train/c/notes.TXT"] = b"later"
    source = build.write_folder(tmp_path / "in", files)
    (tmp_path / "in" / "empty").mkdir()
    assert cli.run(["pack", str(source), str(tmp_path / "out"), "--skip-unusable"]) == 0
    said = capsys.readouterr().err
    assert "note: skipped: no images in 1 class folder 'train/c'" in said
    assert "note: passed over 1 file not named as an image: 'train/c/notes.TXT'" in said
    assert "note: 1 of 3 classes have no training image: 'c'" in said
    assert Manifest.load(tmp_path / "out").classes == ("a", "b", "c")


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_an_empty_folder_of_an_archive_is_found(tmp_path: Path, suffix: str) -> None:
    path = build.write_archive(tmp_path / f"a{suffix}", build.class_folder({"cat": 2, "dog": 1}))
    if suffix == ".zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("fox/", b"")
    else:
        with tarfile.open(path, "a") as tar:
            info = tarfile.TarInfo("fox")
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
    with pytest.raises(UserError, match="no images in 1 class folder 'fox'"):
        pack(path, tmp_path / "out", show=False)


def test_folders_of_a_zip_written_with_backslashes_are_folders(tmp_path: Path) -> None:
    path = build.write_archive(tmp_path / "a.zip", build.class_folder({"cat": 2, "dog": 1}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cat\\", b"")
        archive.writestr("fox\\", b"")
    assert list_members(path, folders=True, show=False).names[-2:] == ["cat/", "fox/"]
    assert "cat" not in list_members(path, show=False).names


@pytest.mark.parametrize("suffix", ["", ".tar", ".zip"])
def test_hidden_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    files = build.class_folder({"cat": 3, "dog": 3, ".net": 1, ".ipynb_checkpoints": 1})
    unseen = {"cat/._0.png": b"x", ".DS_Store": b"x", ".git/HEAD": b"x", "__MACOSX/.a/0.png": b"x"}
    unseen |= {"cat/Thumbs.db": b"x", "desktop.ini": b"x"}
    write = build.write_archive if suffix else build.write_folder
    pack(write(tmp_path / f"in{suffix}", {**files, **unseen}), tmp_path / "out")
    note = "note: passed over hidden images: '.ipynb_checkpoints/0000.png', '.net/0000.png'\n"
    said = capsys.readouterr().err.replace("/0.png", "/0000.png")
    assert note in said
    assert "not named as an image" not in said
    source = write(tmp_path / f"all{suffix}", {".m/cat/0.png": b"x", ".m/dog/1.png": b"x"})
    with pytest.raises(UserError, match=r"only hidden images: '\.m/cat/0\.png', '\.m/dog/1\.png'; rename what begins"):
        pack(source, tmp_path / "out")


def test_deep_folders_and_broken_links_are_not_ignored(tmp_path: Path) -> None:
    files = {f"a/b/c/d/e/{name}": data for name, data in build.class_folder({"train/x": 2, "train/y": 2}).items()}
    source = build.write_folder(tmp_path / "in", files)
    assert pack(source, tmp_path / "out", val_fraction=0, show=False).samples("train") == 4
    (source / "a" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"'a/gone.png' is a link to a file that does not exist; remove it"):
        pack(source, tmp_path / "out", show=False)
