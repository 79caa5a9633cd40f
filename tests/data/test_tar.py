"""One WebDataset tar: what it may contain, and that a damaged one is refused or intact."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import dataset_builders as build
from support.webdataset_tars import raw, refusal, sample, write

from cifar_dist.data.index import index
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.read import ShardReader
from cifar_dist.data.verify import verify
from cifar_dist.errors import UserError

PNG = build.image_file(build.random_images(1, side=8)[0])


OTHER = build.image_file(build.random_images(1, side=9)[0])


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([], "it contains no samples"),
        ([("a.cls", b"0")], "sample 'a' has .cls, but needs exactly one of .png, .npy, .jpg, .jpeg, .webp"),
        ([("a.txt", b"0"), ("a.input.png", PNG)], "sample 'a' has .txt, .input.png, but needs exactly one of"),
        ([("a.png", PNG), ("a.jpg", PNG)], "sample 'a' has .png, .jpg, but needs exactly one of"),
        ([("a.png", PNG), ("b.jpg", PNG)], "its images are stored as png and jpg"),
        ([("a.png", PNG), ("a.cls", b"0"), ("b.png", PNG)], "sample 'b' has no .cls, but others do"),
        ([("a.png", PNG), ("b.png", PNG), ("a.cls", b"0")], "the members of sample 'a' are not consecutive"),
        ([("a.png", PNG), ("a.PNG", PNG)], "it contains 'a.png' twice"),
        ([("a.png", PNG), ("a.cls", b"cat")], "'a.cls' is b'cat', not a class number"),
        ([("a.png", PNG), ("a.cls", b"-1")], "'a.cls' is b'-1', not"),
        ([("a.png", PNG), ("a.cls", b"9" * 4000)], "not a class number from 0 to 99999"),
        ([("a.png", PNG), ("a.cls", b"0" * 70 + b"1")], "not a class number from 0 to 99999"),
        ([("a.png", PNG), ("a.cls", "٣".encode())], "not a class number from 0 to 99999"),
        ([("a.png", b"no image")], "'a.png' cannot be decoded"),
        ([("a.png", PNG[:-30])], "'a.png' cannot be decoded"),
        ([("a.png", PNG), ("b.png", OTHER)], "'a' is 8x8 and 'b' is 9x9; they must have one size and format"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[:40],
)
def test_a_tar_that_cannot_be_trained_on_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], complaint: str
) -> None:
    raw(tmp_path / "train-0.tar", members)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'train-0.tar'}")
    assert complaint in message


@pytest.mark.parametrize("hidden", [["x/.DS_Store"], ["x/._0.png", "x/._1.png"], [".x/y/.0.png", "x/.1.cls"]])
def test_hidden_files_are_no_samples(tmp_path: Path, hidden: list[str]) -> None:
    """Webdataset reads those of a folder as one sample, whose key is the folder."""
    other = build.image_file(build.random_images(1, 1, side=8)[0])
    members = [("x/0.png", PNG), ("x/0.cls", b"0"), ("x/1.png", other), ("x/1.cls", b"1")]
    raw(tmp_path / "a.tar", [(hidden[0], b"x"), *members, *((name, b"x") for name in hidden[1:])])
    assert index(tmp_path, show=False).keys("train") == ["x/0", "x/1"]
    verify(tmp_path, show=False)


def test_the_hidden_files_of_a_mac_between_the_members_of_a_sample_are_refused(tmp_path: Path) -> None:
    """Webdataset reads two samples, of which one has no image. At the top of a tar it skips them."""
    members = [("0.cls", b"0"), ("0.png", PNG)]
    mixed = [member for name, data in members for member in ((f"._{name}", b"x"), (name, data))]
    raw(tmp_path / "a.tar", mixed)
    assert index(tmp_path, show=False).keys("train") == ["0"]
    verify(tmp_path, show=False)
    raw(tmp_path / "a.tar", [(f"x/{name}", data) for name, data in mixed])
    (tmp_path / "manifest.json").unlink()
    assert refusal(tmp_path) == (
        f"{tmp_path / 'a.tar'} cannot be used for training: the hidden 'x/._0.png' is between the members of sample "
        "'x/0', which webdataset splits there; create it again without hidden files, on a Mac with COPYFILE_DISABLE=1 "
        "tar; fix or remove it"
    )


def test_a_key_ends_at_its_first_dot(tmp_path: Path) -> None:
    raw(tmp_path / "0.tar", [(f"img.v{row}.0.png", PNG) for row in range(40)])
    assert refusal(tmp_path) == (
        f"{tmp_path / '0.tar'} cannot be used for training: sample 'img' has .v0.0.png, .v1.0.png, .v2.0.png and "
        "37 more, but needs exactly one of .png, .npy, .jpg, .jpeg, .webp (a key ends at the first dot of the file "
        "name); fix or remove it"
    )
    raw(tmp_path / "0.tar", [(f"{'k' * 2000}.{'s' * 2000}{row}.png", PNG) for row in range(4)])
    assert refusal(tmp_path).endswith("(a key ends at the first dot of the file name); fix or remove it")
    assert len(refusal(tmp_path)) < 700


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """Such a key cannot be written to a table of predictions."""
    raw(tmp_path / "train-0.tar", [("caf\udce9.png", PNG), ("caf\udce9.cls", b"0")])
    assert "the name of its member 'caf\\udce9.png' is not UTF-8; fix or remove it" in refusal(tmp_path)
    assert "is not UTF-8; rename it" in refusal(build.write_folder(tmp_path / "caf\udce9", {"0.tar": b"x"}))


def test_a_name_is_utf_8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw(tmp_path / "train-0.tar", [("café.png", PNG), ("café.cls", b"0")])
    monkeypatch.setattr(tarfile.TarFile, "encoding", "iso8859-1")  # as Python sets it in such a locale
    index(tmp_path, show=False)
    assert Manifest.read(tmp_path).shards("train")[0].keys == ("café",)
    verify(tmp_path, show=False)


def test_an_array_that_is_not_an_rgb_image_is_refused(tmp_path: Path) -> None:
    data = io.BytesIO()
    np.save(data, np.zeros((8, 8)))
    raw(tmp_path / "0.tar", [("a.npy", data.getvalue())])
    assert "'a.npy' is float64 (8, 8); store it as uint8 [height, width, 3]" in refusal(tmp_path)


def test_grey_palette_and_deep_images(tmp_path: Path) -> None:
    grey = build.random_images(1, side=8)[0, :, :, 0]
    raw(tmp_path / "0.tar", [("a.png", build.image_file(grey))])
    image = ShardReader(index(tmp_path, show=False), "train").image(0)
    assert np.array_equal(image, np.repeat(grey[..., None], 3, axis=2))
    raw(tmp_path / "0.tar", [("a.png", build.image_file(grey.astype(np.uint16)))])
    (tmp_path / "manifest.json").unlink()
    assert "more than 8 bits per channel" in refusal(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    raw(tmp_path / "0.tar", [("a.png", PNG), ("b.png", b"")], type=kind, linkname="/etc/passwd")
    assert "'b.png' is not a regular file" in refusal(tmp_path)


def test_folders_and_comments_in_a_tar_are_ignored(tmp_path: Path) -> None:
    raw(tmp_path / "0.tar", [("__readme__", b"hi"), ("a/b.png", PNG), ("a", b"")], type=tarfile.DIRTYPE)
    assert index(tmp_path, show=False).keys("train") == ["a/b"]
    verify(tmp_path, show=False)


def test_tars_that_were_joined_are_refused(tmp_path: Path) -> None:
    """Every reader stops at the end of the first."""
    path = write(tmp_path / "0.tar", [sample("0", 0, 0), sample("1", 1, 1)])
    path.write_bytes(path.read_bytes() * 2)
    assert "data follows its end, as in tars joined with cat; tar -xif unpacks all of them; fix" in refusal(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return write(folder / "0.tar", [sample(f"{row}", row % 2, row) for row in range(4)])


@settings(deadline=None, max_examples=100)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3), length=st.integers(0, 20_000)
)
def test_a_damaged_tar_is_refused_or_is_a_dataset_that_verifies(
    whole: Path, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(whole.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    folder = whole.parent / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "0.tar").write_bytes(data[:length])
    message = ""
    try:
        index(folder, show=False)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    if message:
        assert os.listdir(folder) == ["0.tar"]
    else:
        verify(folder, show=False)
