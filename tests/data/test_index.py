"""``index``: tars from elsewhere, written by webdataset or tarfile, are trained on in place."""

from __future__ import annotations

import shutil
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support import dataset_builders as build
from support.running import spawn, train
from support.webdataset_tars import FORMS, notes, raw, refusal, sample, write
from support.without_rights import public_folder, without_rights
from webdataset import WebDataset

from cifar_dist import cli
from cifar_dist.data.image import decode
from cifar_dist.data.index import index
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.pack import pack
from cifar_dist.data.read import ShardReader
from cifar_dist.data.statistics import channel_statistics, pixel_counts
from cifar_dist.data.verify import verify
from cifar_dist.errors import UserError


@pytest.mark.parametrize("codec", [*FORMS, "npy"])
def test_tars_of_other_tools_are_read_as_webdataset_reads_them(tmp_path: Path, codec: str) -> None:
    for split, tars in (("train", 3), ("test", 1)):
        for number in range(tars):
            extra = {"json": b"{}", "__meta__": b""} if split == "train" else {}
            samples = [
                {**sample(f"{split}/{number}{row}", (number + row) % 3, 10 * number + row, codec=codec), **extra}
                for row in range(4 + number)
            ]
            write(tmp_path / f"pets-{split}-{number:04d}.tar", samples)
    manifest = index(tmp_path, show=False)
    assert manifest.name == tmp_path.name
    assert (manifest.codec, manifest.shape, manifest.classes) == (codec, (8, 8, 3), ("0", "1", "2"))
    assert {split: len(many) for split, many in manifest.splits.items()} == {"train": 3, "test": 1}
    assert Manifest.load(tmp_path).to_json() == manifest.to_json()
    assert "all shards are intact" in str(verify(tmp_path, show=False))
    for split in ("train", "test"):
        urls = [str(tmp_path / shard.name) for shard in manifest.shards(split)]
        samples = list(WebDataset(urls, shardshuffle=False, empty_check=False))
        assert manifest.keys(split) == [entry["__key__"] for entry in samples]
        assert manifest.labels(split).tolist() == [int(entry["cls"]) for entry in samples]
        images = ShardReader(manifest, split).all().numpy()
        assert np.array_equal(images, np.stack([decode(entry[codec], codec) for entry in samples]))  # type: ignore[arg-type]
        if split == "train":
            assert (manifest.mean, manifest.std) == channel_statistics(pixel_counts(images))


def test_blank_images_of_any_size_and_number_are_not_in_memory_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are tiny in a tar."""
    monkeypatch.setattr("cifar_dist.data.statistics._CHUNK_BYTES", 1 << 20)
    blank = build.image_file(np.zeros((512, 512, 3), np.uint8), "PNG")
    samples: list[dict[str, bytes | str]]
    samples = [{"__key__": f"{row:03}", "png": blank, "cls": b"0"} for row in range(40)]
    write(tmp_path / "one" / "0.tar", samples)
    tracemalloc.start()
    manifest = index(tmp_path / "one", show=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert manifest.samples("train") == 40
    assert peak < 40 * 512 * 512 * 3 / 2
    write(tmp_path / "two" / "0.tar", [*samples, sample("x")])
    assert "'000' is 512x512 and 'x' is 8x8; they must have one size" in refusal(tmp_path / "two")


def test_what_pack_wrote_is_indexed_to_the_same_manifest(tmp_path: Path) -> None:
    packed = pack("digits", tmp_path / "digits", show=False)
    (tmp_path / "digits" / "manifest.json").unlink()
    found = index(tmp_path / "digits", show=False)
    assert found.splits["train"][0].to_json() == packed.splits["train"][0].to_json()
    assert {**found.to_json(), "source": None} == {**packed.to_json(), "source": None}


def test_an_indexed_dataset_trains(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    samples = [sample(f"{row:04d}", row % 10, row, side=16, codec="jpg") for row in range(64)]
    write(folder / "train" / "0.tar", samples[:40])
    write(folder / "valid" / "0.tar", samples[40:52])
    write(folder / "test" / "0.tar", samples[52:])
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(build.CLASSES_10) + "\n")
    (indexed,) = spawn(["-m", "cifar_dist", "index", str(folder), "--classes", str(names)])
    assert indexed.returncode == 0, indexed.stderr
    assert indexed.stdout == "indexed mine: 40 train, 12 val, 12 test, 10 classes\n"
    again = ["index", str(folder), "--classes", str(names)]
    assert cli.run(again) == 0
    small = ["--data.path", str(folder), "--train.epochs", "2", "--train.batch_size", "16"]
    (run,) = train("demo", *small, "--run.dir", str(tmp_path / "runs"), "--run.name", "r")
    assert run.returncode == 0, run.stderr
    (csv,) = (tmp_path / "runs" / "r").glob("evaluations/*/submission.csv")
    assert [line.split(",")[0] for line in csv.read_text().splitlines()] == ["ID", *(str(n) for n in range(52, 64))]


def test_class_folders_in_a_tar_are_for_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [(f"{name}.png", sample("", 0, seed)["png"]) for seed, name in enumerate(("cat/0", "cat/1", "dog/0"))]
    (tmp_path / "T").mkdir()
    path = raw(tmp_path / "T" / "pets.tar", members)  # type: ignore[arg-type]
    (note,) = notes(path.parent, capsys)
    assert note.endswith(f"; for images in class folders: cifar-dist pack {path} shards/NAME")
    assert pack(path, tmp_path / "out", show=False).classes == ("cat", "dog")
    shutil.copy(path, path.with_name("more.tar"))
    assert "unpack the tars to one folder, then: cifar-dist pack FOLDER shards/NAME" in notes(path.parent, capsys)[1]
    write(tmp_path / "J" / "0.tar", [{**sample(f"{row}/0", None, row), "json": b"{}"} for row in range(2)])
    assert notes(tmp_path / "J", capsys)[0].endswith("to KEY.cls; the .json members may hold it")  # numbers of shards


def test_a_val_split_without_a_class_of_train_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", [sample("a", 0), sample("b", 1, 1)])
    write(tmp_path / "val-0.tar", [sample("c", 2, 2)])
    assert "no class of val is one of train: '2'; number both alike, from 0" in refusal(tmp_path)


def test_tars_without_a_split_name_are_train_and_without_labels_have_no_classes(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [sample("a", None), sample("b", None, 1)])
    manifest = index(tmp_path, show=False)
    assert list(manifest.splits) == ["train"]
    assert manifest.classes == ()
    assert manifest.labels("train").tolist() == [-1, -1]
    verify(tmp_path, show=False)


def test_a_split_without_labels_is_noted_with_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "train-0.tar", [sample("a", 0), sample("b", 1, 1)])
    for split in ("val", "test"):
        write(tmp_path / f"{split}-0.tar", [sample("c", None, 2)])
    assert notes(tmp_path, capsys) == [
        "val has no labels (KEY.cls): training will refuse the dataset; add the labels, or name the tars 'test'",
        "test has no labels (KEY.cls): a run ends with predictions of it, but no accuracy",
    ]
    lines = str(verify(tmp_path, show=False)).splitlines()
    assert [line.rpartition("MiB  ")[2] for line in lines[1:4]] == ["1 per class", "no labels", "no labels"]
    write(tmp_path / "train-0.tar", [sample("a", None)])
    for split in ("val", "test"):
        write(tmp_path / f"{split}-0.tar", [sample("c", None, 2)])
    assert notes(tmp_path, capsys, classes=["cat", "dog"])[0].startswith("no sample has a class number in KEY.cls")


def test_a_split_of_which_a_tar_has_no_labels_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}-0.tar", [sample("a", 0), sample("b", 1, 1)])
    write(tmp_path / "test-1.tar", [sample("c", None, 2)])
    assert "1 of 3 samples of test have no label, the first in test-1.tar; add the labels" in refusal(tmp_path)


def test_class_names_may_be_given_and_must_cover_the_labels(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [sample("a", 0), sample("b", 2, 1)])
    assert index(tmp_path, classes=["x", "y", "z", "unseen"], show=False).classes == ("x", "y", "z", "unseen")
    assert "contains the label 2, but --classes names only 2 classes; name 3" in refusal(tmp_path, classes=["x", "y"])


def test_class_names_given_before_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "0.tar", [sample("a", 0), sample("b", 1, 1)])
    index(tmp_path, show=False)
    assert notes(tmp_path, capsys) == []  # names by number are none to keep
    index(tmp_path, classes=["cat", "dog", "unseen"], show=False)
    write(tmp_path / "1.tar", [sample("c", 2, 2)])
    assert "kept the class names of the former manifest" in notes(tmp_path, capsys)
    assert Manifest.load(tmp_path).classes == ("cat", "dog", "unseen")
    write(tmp_path / "1.tar", [sample("c", 3, 2)])
    assert "contains the label 3, but its former manifest names only 3 classes; name 4 with --classes FILE" in refusal(
        tmp_path
    )
    assert index(tmp_path, classes=["a", "b", "c", "d"], show=False).classes == ("a", "b", "c", "d")


def test_a_file_of_class_names(tmp_path: Path) -> None:
    write(tmp_path / "tars" / "0.tar", [sample("a", 0), sample("b", 1, 1)])
    names = tmp_path / "names.txt"
    names.write_bytes("\ufeffcafe\u0301\r\ntea\r\n".encode())
    assert cli.run(["index", str(tmp_path / "tars"), "--classes", str(names)]) == 0
    assert Manifest.load(tmp_path / "tars").classes == ("caf\u00e9", "tea")
    names.write_text("tea\ncoffee\ntea\n")
    with pytest.raises(UserError, match="names the class 'tea' twice"):
        cli.run(["index", str(tmp_path / "tars"), "--classes", str(names)])
    names.write_text("cat, grey\n")
    with pytest.raises(UserError, match="contains the label 1, but --classes names only 1 classes"):
        cli.run(["index", str(tmp_path / "tars"), "--classes", str(names)])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "label,name\n0,cat\n1,dog\n", "a.csv is named as a csv file"),
        ("a.json", '["cat", "dog"]', "a.json is named as a json file"),
        ("a.txt", "label,name\n0,cat\n1,dog\n", "has numbers beside the names, as in '0,cat'"),
        ("a.txt", "0 cat\n1 dog\n", "has numbers beside the names, as in '0 cat'"),
        ("a.txt", "0: cat\n1: dog\n", "has numbers beside the names"),
        ("a.txt", "name\tid\ncat\t0\ndog\t1\n", "has numbers beside the names, as in 'cat\\t0'"),
        ("a.txt", "2 dog\n1 cat\n", "has numbers beside the names, as in '2 dog'"),
        ("a.txt", "5 cent,0\n1 euro,1\n", "has numbers beside the names, as in '5 cent,0'"),
        ("a.txt", " \n\n", "a.txt names no class; "),
        ("a.txt", "001.Albatross\n3 dogs\n", ""),
        ("a.txt", "big cat\n7up\n", ""),
        ("a.txt", "2 doors\ncat, grey\n", ""),
        ("a.txt", "1 cent\n2 cent\n5 cent\n", ""),
        ("a.txt", "1 cent\n2 cent\n", ""),
        ("a.txt", "10 euro\n5 cent\n", ""),
        ("a.txt", "10:30\n9:45\n", ""),
        ("a.txt", f"{'9' * 5000} cats\n1 dog\n", ""),
    ],
)
def test_a_table_is_no_file_of_class_names(tmp_path: Path, name: str, content: str, says: str) -> None:
    write(tmp_path / "tars" / "0.tar", [sample("a", 0), sample("b", 1, 1)])
    (tmp_path / name).write_text(content)
    words = ["index", str(tmp_path / "tars"), "--classes", str(tmp_path / name)]
    if not says:
        assert cli.run(words) == 0
        return
    with pytest.raises(UserError) as error:
        cli.run(words)
    assert says in str(error.value)
    assert str(error.value).endswith("one class name per line, in label order, without numbers and without a header")


def test_ignored_members_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [{**sample(f"{row}", None, row), "label": b"1", **({"json": b"{}"} if row else {})} for row in range(3)]
    write(tmp_path / "train-0.tar", entries)
    (tmp_path / "_stats.json").write_text("{}")
    assert notes(tmp_path, capsys) == [
        "no sample has a class number in KEY.cls, so the dataset is unlabelled and cannot be trained on; write the "
        "class number of each sample to KEY.cls; the .label or .json members may hold it",
        "passed over members that are neither image nor .cls: 2 .json, 3 .label",
        "passed over the files that are not tars: '_stats.json'",
    ]
    write(tmp_path / "train-0.tar", [sample("a", 1), sample("b", 1, 1)])
    (tmp_path / "_stats.json").unlink()
    hidden = {".val/0.tar": b"", "train/.1.tar": b"", "._train-0.tar": b"", ".DS_Store": b""}
    build.write_folder(tmp_path, {**hidden, "train/notes.txt": b""})
    assert notes(tmp_path, capsys) == [
        "1 of 2 classes have no training image: '0'",
        "all training images are in one class; a classifier requires at least two",
        "passed over the files that are not tars: 'train/notes.txt'",
        "passed over hidden tars: '.val/0.tar', 'train/.1.tar'",
    ]


def test_members_that_are_no_sample_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png = build.image_file(build.random_images(1, side=8)[0])
    ignored = [
        "img0",
        "a.b/img1",
        ".img2.png",
        "._a.png",
        "a.b/._b.png",
        ".DS_Store",
        "x/.DS_Store",
        "x/._a.png",
        "__meta__",
    ]
    raw(
        tmp_path / "0.tar",
        [("a.png", png), ("a.cls", b"0"), ("b.PNG", png), ("b.cls", b"0"), *((n, png) for n in ignored)],
    )
    assert "passed over members that are neither image nor .cls: 6 hidden, 2 without a suffix" in notes(
        tmp_path, capsys
    )
    verify(tmp_path, show=False)


def test_images_in_two_splits_or_two_classes_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "train-0.tar", [sample("a", 0), sample("b", 1, 1)])
    write(tmp_path / "train-1.tar", [sample("c", 1), sample("d", 0, 2)])
    write(tmp_path / "test-0.tar", [sample("e", 1, 1), sample("f", 0, 3)])
    assert notes(tmp_path, capsys) == [
        "images of test that train has, too: 1 of 2: 'test-0.tar/e.png'",
        "images that another class has, too: 1: 'train-1.tar/c.png'",
    ]


def test_tars_of_different_sizes_or_formats_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", [sample("a")])
    write(tmp_path / "test-0.tar", [sample("b", side=9)])
    assert "train-0.tar holds .png of 8x8, test-0.tar holds .png of 9x9; they must have one size and format" in refusal(
        tmp_path
    )
    write(tmp_path / "test-0.tar", [sample("b", codec="jpg")])
    assert "test-0.tar holds .jpg of 8x8" in refusal(tmp_path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    assert f"the folder {tmp_path / 'none'} does not exist" in refusal(tmp_path / "none")
    write(tmp_path / "file" / "train-0.tar", [sample("a")])
    tar = tmp_path / "file" / "train-0.tar"
    assert f"{tar} is a file; name the folder that contains the tars, {tar.parent}" in refusal(tar)
    shutil.rmtree(tar.parent)
    assert "and its subfolders contain no .tar" in refusal(tmp_path)
    pack("digits", tmp_path / "digits", codec="npy", show=False)
    assert "is already packed" in refusal(tmp_path / "digits")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path} contains the packed dataset 'digits', whose tars index would merge; ")
    assert message.endswith(
        f"; name it: {tmp_path / 'digits'}, or move the manifest.json of each away to index all tars"
    )
    write(tmp_path / "names" / "a b-0.tar", [sample("a")])
    assert "must be named with letters, digits" in refusal(tmp_path / "names")
    write(tmp_path / "both" / "test" / "train-0.tar", [sample("a")])
    assert "names two splits, test and train" in refusal(tmp_path / "both")
    with pytest.raises(UserError, match="give a text file with one class name per line"):
        cli.run(["index", str(tmp_path / "digits"), "--classes", str(tmp_path / "none.txt")])


def test_a_folder_that_cannot_be_written_is_refused_before_an_image_is_decoded() -> None:
    """The line that the refusal prints indexes links to the tars."""
    with public_folder() as folder:
        tar = write(folder / "shared" / "test" / "0.tar", [sample("a"), {"__key__": "b", "png": b"x", "cls": b"1"}])
        with without_rights():
            message = refusal(folder / "shared")
        what, _, links = message.partition("; link the tars into a folder of yours: ")
        assert what == f"{folder}/shared/manifest.json cannot be written (it is read-only for you)"
        write(tar, [sample("a"), sample("b", 1)])
        making, _, command = links.rpartition(" && ")
        subprocess.run(making, shell=True, check=True, cwd=folder)
        assert command == "cifar-dist index shared-links"
        assert index(folder / "shared-links", show=False).keys("test") == ["a", "b"]
        assert [path.name for path in (folder / "shared").iterdir()] == ["test"]


def test_the_manifest_of_another_program_is_neither_ours_nor_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What each command suggests leads to one that works."""
    theirs = {"manifest.json": b'{"name": "my web app"}'}
    images = build.write_folder(tmp_path / "images", {**build.class_folder({"cat": 2, "dog": 2}, side=8), **theirs})
    with pytest.raises(UserError, match=f"is not a packed dataset; create one from it: cifar-dist pack {images}"):
        verify(images, show=False)
    pack(images, tmp_path / "out", val_fraction=0)
    assert "note: passed over 1 file not named as an image: 'manifest.json'\n" in capsys.readouterr().err

    tars = write(tmp_path / "tars" / "train-0.tar", [sample("a"), sample("b", 1)]).parent
    build.write_folder(tars, theirs)
    with pytest.raises(UserError, match=f"no manifest.json of cifar-dist; create one with: cifar-dist index {tars}"):
        verify(tars, show=False)
    assert "is another program's, and index would replace it; move it away" in refusal(tars)


@pytest.mark.parametrize("content", ['{"format":"cifar-dist-manifest"', '{"format":"cifar-dist-manifest","version":9}'])
def test_a_manifest_that_cannot_be_read_is_moved_away_before_tars_are_indexed(tmp_path: Path, content: str) -> None:
    write(tmp_path / "train-0.tar", [sample("a"), sample("b", 1)])
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"is not a valid manifest: .*; pack the dataset again, into a new folder"):
        verify(tmp_path, show=False)
    assert refusal(tmp_path).endswith("; move it away, and run the command again")
    (tmp_path / "manifest.json").unlink()
    index(tmp_path, show=False)
    verify(tmp_path, show=False)


def test_other_commands_suggest_indexing_tars(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", [sample("a")])
    with pytest.raises(UserError, match=f"create one with: cifar-dist index {tmp_path}"):
        Manifest.load(tmp_path)
    with pytest.raises(UserError, match="for WebDataset tars use: cifar-dist index FOLDER"):
        pack(path.rename(tmp_path / "x-0.tar").parent, tmp_path.with_name("out"), show=False)
    write(tmp_path / "split" / "train" / "0.tar", [sample("a")])
    with pytest.raises(UserError, match=f"create one with: cifar-dist index {tmp_path / 'split'}"):
        Manifest.load(tmp_path / "split")
    shutil.rmtree(tmp_path / "split")
    index(tmp_path, show=False)
    (tmp_path / "x-0.tar").unlink()
    with pytest.raises(UserError, match=f"recreate the dataset with: cifar-dist index {tmp_path}\n  x-0.tar: missing"):
        verify(tmp_path, show=False)
