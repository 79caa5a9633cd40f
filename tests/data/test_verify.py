"""``verify`` finds and names every fault, and reports how well the order mixes the classes."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import dataset_builders as build
from support.without_rights import public_folder, without_rights
from webdataset import TarWriter

from cifar_dist import cli
from cifar_dist.data.index import index
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.pack import pack
from cifar_dist.data.verify import total_variation, verify
from cifar_dist.errors import UserError

verify_quietly = functools.partial(verify, show=False)
CLASSES = 4
IMAGE = build.image_file(build.random_images(1, side=6)[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of train, one of val, one of test."""
    folder = tmp_path_factory.mktemp("whole")
    images = build.random_images(70, side=5)
    labels = np.arange(70) % CLASSES
    np.savez(folder / "a.npz", x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    pack(folder / "a.npz", folder / "out", samples_per_shard=20, show=False)
    return folder / "out"


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "data"))


def problems(folder: Path) -> list[str]:
    """Return the reported problems: all lines but the first, which says what to type."""
    with pytest.raises(UserError) as error:
        verify_quietly(folder)
    head, *lines = str(error.value).splitlines()
    assert f"cifar-dist pack SOURCE {folder}" in head
    assert f"{len(lines)} of 5 shards are missing or damaged" in head
    return [line.strip() for line in lines]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest but keep the shards' checksums valid, so that only a check of the members finds it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256", None)  # as other programs and earlier versions write it
    change(manifest)
    for shards in manifest["splits"].values():
        for shard in shards:
            data = (folder / shard["name"]).read_bytes()
            shard["bytes"], shard["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_an_intact_dataset_is_described(whole: Path) -> None:
    report = verify_quietly(whole)
    assert {name: (split.samples, split.shards) for name, split in report.splits.items()} == {
        "train": (52, 3),
        "val": (8, 1),
        "test": (10, 1),
    }
    assert report.splits["train"].class_counts.tolist() == [13] * CLASSES
    assert report.splits["train"].bytes == sum(path.stat().st_size for path in whole.glob("train-*.tar"))
    text = str(report)
    assert "all shards are intact" in text
    assert "13 per class" in text
    assert "2 to 3 per class" in text
    assert report.manifest.fingerprint in text


@pytest.mark.parametrize("indexed", [False, True])
def test_a_tar_that_no_run_reads_is_named(dataset: Path, indexed: bool) -> None:
    if indexed:
        (dataset / "manifest.json").unlink()
        index(dataset, show=False)
    assert "does not list" not in str(verify_quietly(dataset))
    build.write_folder(dataset, {"train-000009.tar": b"x", "more/1.TAR": b"", ".hidden.tar": b"", "notes.txt": b""})
    (last,) = str(verify_quietly(dataset)).splitlines()[-1:]
    remedy = f"run cifar-dist index {dataset}" if indexed else "move them away"
    assert last == f"  unused  tars that the manifest does not list: 'more/1.TAR', 'train-000009.tar'; {remedy}"


def test_every_fault_of_every_shard_is_listed(dataset: Path) -> None:
    (dataset / "train-000001.tar").unlink()
    data = (dataset / "train-000002.tar").read_bytes()
    (dataset / "train-000002.tar").write_bytes(data[:5000])
    flipped = bytearray((dataset / "val-000000.tar").read_bytes())
    flipped[700] ^= 1
    (dataset / "val-000000.tar").write_bytes(flipped)
    with (dataset / "test-000000.tar").open("ab") as file:
        file.write(b"x")
    found = problems(dataset)
    assert found[0] == "train-000001.tar: missing"
    assert found[1] == f"train-000002.tar: truncated: 5,000 of {len(data):,} bytes"
    assert found[2].startswith("val-000000.tar: sha256 is ")
    assert found[3].startswith("test-000000.tar: ")
    assert len(found) == 4


@pytest.mark.parametrize("place", [0, 600, 1100, 3000, -1])
def test_one_flipped_bit_anywhere_is_reported(dataset: Path, place: int) -> None:
    path = dataset / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    assert "sha256" in problems(dataset)[0]


def test_wrong_offsets_are_reported(dataset: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        train, test = manifest["splits"]["train"][0], manifest["splits"]["test"][0]
        train["image_offset"][3] += 512
        test["label_offset"][:2] = reversed(test["label_offset"][:2])

    key = json.loads((dataset / "manifest.json").read_text())["splits"]["train"][0]["keys"][3]
    rewrite(dataset, change)
    assert problems(dataset) == [
        f"train-000000.tar: '{key}.png' is not at the offset that the manifest says",
        "test-000000.tar: '00000000.cls' is not at the offset that the manifest says",
    ]


def test_a_label_that_differs_from_the_cls_member_is_reported(dataset: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        labels = manifest["splits"]["test"][0]["labels"]
        labels[2] = (labels[2] + 1) % CLASSES

    rewrite(dataset, change)
    assert problems(dataset) == ["test-000000.tar: '00000002.cls' is b'2', the manifest says 3"]


def test_a_sample_that_webdataset_cannot_read_is_reported(dataset: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["splits"]["test"][0]["keys"][2] = "00000099"

    rewrite(dataset, change)
    assert problems(dataset) == ["test-000000.tar: webdataset reads 10 samples that differ from the manifest's 10"]


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (build.image_file(build.random_images(1, side=4)[0]), "is uint8 (4, 4, 3), the manifest says (5, 5, 3)"),
        (b"no image", "cannot be decoded"),
        (build.image_file(build.random_images(1, side=5)[0])[:-30], "cannot be decoded"),
    ],
    ids=["other shape", "no image", "cut short"],
)
def test_an_unusable_image_is_reported(dataset: Path, image: bytes, complaint: str) -> None:
    with (dataset / "val-000000.tar").open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        tar.write({"__key__": "0", "png": image, "cls": b"1"})

    def change(manifest: dict[str, Any]) -> None:
        size = len(image)
        manifest["splits"]["val"] = [
            {"name": "val-000000.tar", "samples": 1, "keys": ["0"], "labels": [1], "label_offset": [512],
             "label_size": [1], "image_offset": [1536], "image_size": [size]}
        ]  # fmt: skip

    rewrite(dataset, change)
    found = problems(dataset)
    assert len(found) == 1
    assert found[0].startswith("val-000000.tar: '0.png' ")
    assert complaint in found[0]


def test_a_shard_that_is_not_a_tar_is_reported(dataset: Path) -> None:
    (dataset / "val-000000.tar").write_bytes(b"x" * 20_000)
    rewrite(dataset, lambda manifest: None)
    assert "is not a WebDataset tar" in problems(dataset)[0]


def test_a_manifest_that_names_a_file_elsewhere_is_refused(dataset: Path) -> None:
    for name in ("../secret.tar", "/etc/passwd", "train-000000.tar/../x.tar", ".hidden.tar"):
        manifest = json.loads((dataset / "manifest.json").read_text())
        manifest["splits"]["train"][0]["name"] = name
        (dataset / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="is not a plain file name"):
            verify_quietly(dataset)


@pytest.mark.parametrize(("offset", "size"), [(2**63 - 1, 2**63 - 1), (1, 2**63 - 1), (2**63 - 1, 1), (-1, 1), (1, -1)])
def test_a_member_outside_its_shard_is_refused(dataset: Path, offset: int, size: int) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    shard = manifest["splits"]["train"][0]
    shard["image_offset"][0], shard["image_size"][0] = offset, size
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="a member lies outside the file's"):
        Manifest.load(dataset)


@given(data=st.data())
def test_a_byte_of_the_manifest_that_has_changed_is_noticed_before_anything_is_trained_on(
    whole: Path, data: st.DataObject
) -> None:
    """Labels, names of classes and of files are in no shard's checksum."""
    content = bytearray((whole / "manifest.json").read_bytes())
    place = data.draw(st.integers(0, len(content) - len(b',"sha256":"') - 68))  # before its own checksum
    content[place] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        build.write_folder(Path(folder), {"manifest.json": bytes(content), "train-000000.tar": b""})
        with pytest.raises(UserError):
            Manifest.load(folder)


@pytest.mark.parametrize("content", [b"", bytes(100), b'{"format":"cifar-dist-ma'])
def test_a_damaged_manifest_beside_tars_is_named(dataset: Path, content: bytes) -> None:
    (dataset / "manifest.json").write_bytes(content)
    remedy = rf"is damaged; .* delete manifest.json and run: cifar-dist index {dataset}$"
    with pytest.raises(UserError, match=remedy):
        Manifest.load(dataset)


def test_a_manifest_that_may_not_be_read_is_named() -> None:
    with public_folder() as folder:
        build.write_folder(folder, {"manifest.json": b"{}"})
        (folder / "manifest.json").chmod(0)
        with without_rights(), pytest.raises(UserError, match=r"manifest.json cannot be read: Permission denied$"):
            verify_quietly(folder)


def test_a_name_cannot_control_the_terminal(dataset: Path) -> None:
    rewrite(dataset, lambda manifest: manifest.update(name="x\x1b[31mRED\x07"))
    report = str(verify_quietly(dataset))
    assert "x\\x1b[31mRED\\x07, " in report
    assert all(line.isprintable() for line in report.split("\n"))


def test_a_missing_dataset_is_an_error_that_suggests_pack(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no packed dataset at .* create one with: cifar-dist pack"):
        verify_quietly(tmp_path)


def test_a_folder_of_datasets_is_answered_with_their_names(tmp_path: Path) -> None:
    for name in ("base", "e_rev"):
        pack("digits", tmp_path / name, codec="npy", show=False)
    build.write_folder(tmp_path, {"run/manifest.json": (tmp_path / "base" / "manifest.json").read_bytes()})
    build.write_folder(tmp_path, {"run/config.toml": b"", "notes/a.txt": b""})
    with pytest.raises(UserError) as error:
        verify_quietly(tmp_path)
    base = tmp_path / "base"
    assert str(error.value) == f"{tmp_path} contains the packed datasets 'base', 'e_rev'; name one: {base}"
    shutil.rmtree(tmp_path / "e_rev")
    with pytest.raises(UserError, match=f"contains the packed dataset 'base'; name it: {base}"):
        verify_quietly(tmp_path)


@pytest.mark.parametrize("codec", ["png", "npy"])
def test_unlabelled_and_npy_datasets_are_verified(tmp_path: Path, codec: str) -> None:
    np.savez(tmp_path / "a.npz", data=build.random_images(5), ids=np.arange(5))
    pack(tmp_path / "a.npz", tmp_path / "out", codec=codec, show=False)  # type: ignore[arg-type]
    report = verify_quietly(tmp_path / "out")
    assert report.balance is None
    assert report.splits["test"].samples == 5
    assert "per class" not in str(report)


def test_total_variation_of_known_orders() -> None:
    labels = torch.arange(1000) // 100  # ten classes, sorted
    assert total_variation(labels, torch.arange(1000), 100, 10) == pytest.approx(0.9)
    interleaved = torch.arange(1000).reshape(10, 100).T.reshape(-1)
    assert total_variation(labels, interleaved, 100, 10) == pytest.approx(0)
    assert total_variation(labels, torch.arange(1000), 2000, 10) == pytest.approx(0)
    half = torch.tensor([0, 0, 0, 1])
    assert total_variation(half, torch.arange(4), 2, 2) == pytest.approx(0.25)


def test_the_mixing_figure_distinguishes_a_poor_order_from_a_good_one(tmp_path: Path) -> None:
    """With one class per shard, as in some WebDatasets."""
    folder = tmp_path / "sorted"
    folder.mkdir()
    images = build.random_images(1, side=2)
    np.savez(tmp_path / "a.npz", x_train=np.repeat(images, 1500, axis=0), y_train=np.arange(1500) * 6 // 1500)
    packed = pack(tmp_path / "a.npz", folder, samples_per_shard=50, codec="npy", val_fraction=0, show=False)
    good = verify_quietly(folder).balance
    assert good is not None
    assert good.epoch == pytest.approx(good.uniform, rel=0.1)
    assert good.stored == pytest.approx(good.uniform, rel=0.5)

    # The same manifest with the classes sorted: the check for mixing uses only labels and keys.
    raw = packed.to_json()
    for number, shard in enumerate(raw["splits"]["train"]):
        rows = range(50 * number, 50 * (number + 1))
        with (folder / shard["name"]).open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            data = io.BytesIO()
            np.save(data, images[0])
            for row in rows:
                tar.write({"__key__": f"{row}", "npy": data.getvalue(), "cls": str(row // 250).encode()})
        shard["keys"], shard["labels"] = [str(row) for row in rows], [row // 250 for row in rows]
    (folder / "manifest.json").write_text(json.dumps(raw))
    rewrite(folder, lambda manifest: None)
    poor = verify_quietly(folder, shuffle_block=1).balance
    assert poor is not None
    assert Manifest.load(folder).labels("train").tolist() == [row // 250 for row in range(1500)]
    assert poor.stored == pytest.approx(4 / 6)  # a batch of 500 holds two of the six classes
    assert good.uniform < poor.epoch < poor.stored
    mixed = verify_quietly(folder, shuffle_block=64).balance
    assert mixed is not None
    assert mixed.epoch == pytest.approx(mixed.uniform, rel=0.1)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_the_normalisation_is_that_of_the_images(dataset: Path, name: str) -> None:
    """No shard's checksum covers it, and every input of the network depends on it."""
    rewrite(dataset, lambda manifest: manifest[name].__setitem__(1, manifest[name][1] + 0.01))
    with pytest.raises(UserError, match=rf"manifest.json: {name} is \[.*\], and that of the images is \[.*\]: the man"):
        verify_quietly(dataset)


def test_a_tar_may_be_a_source_or_a_shard(tmp_path: Path) -> None:
    files = {f"{n}.{suffix}": data for n in range(2) for suffix, data in (("png", IMAGE), ("cls", b"0"))}
    build.write_archive(tmp_path / "a.tar", files)
    with pytest.raises(
        UserError, match=r"create one from it: .*; if it is a shard for webdataset, .* index \S+"
    ) as error:
        cli.run(["verify", str(tmp_path / "a.tar")])
    assert str(error.value).endswith(f"cifar-dist index {tmp_path}")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("manifest.json", "is the manifest of a packed dataset; name its folder, FOLDER"),
        ("train-000000.tar", "is a shard of a packed dataset; name its folder, FOLDER"),
        ("images.zip", "is not a packed dataset; create one from it: cifar-dist pack FOLDER/images.zip shards/NAME"),
        ("data.npy", "is a file, not a packed dataset; name a folder that contains manifest.json"),
        ("table.csv", "is a file, not a packed dataset; name a folder that contains manifest.json"),
        ("one.PNG", "is not a packed dataset; create one from its folder: cifar-dist pack FOLDER shards/NAME"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_to_do(dataset: Path, name: str, says: str) -> None:
    (dataset / name).touch()
    if name == "images.zip":
        build.write_archive(dataset / name, {"cat/0.png": IMAGE, "dog/1.png": IMAGE})
    with pytest.raises(UserError) as error:
        cli.run(["verify", str(dataset / name)])
    assert str(error.value) == f"{dataset / name} {says.replace('FOLDER', str(dataset))}"


def test_a_shard_in_a_folder_of_its_split_names_the_dataset(dataset: Path) -> None:
    (dataset / "manifest.json").unlink()
    (dataset / "train").mkdir()
    shard = (dataset / "train-000000.tar").rename(dataset / "train" / "0.tar")
    index(dataset, show=False)
    with pytest.raises(UserError, match=f"is a shard of a packed dataset; name its folder, {dataset}$"):
        verify_quietly(shard)


def test_an_unlabelled_file_is_checked_as_predict_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hidden.npz"
    np.savez(path, data=np.zeros((3, 4, 6, 3), np.uint8), ids=np.array([7, 5, 9]))
    assert cli.run(["verify", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: 3 images of 6x4x3, with unique ids from 5 to 9\n"
    np.savez(path, data=np.zeros((3, 4, 4, 3), np.uint8), ids=np.array([7, 5, 7]))
    with pytest.raises(UserError, match="the id 7 occurs more than once"):
        cli.run(["verify", str(path)])
