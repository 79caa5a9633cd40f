"""How a source is recognised, whatever its form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import dataset_builders as build
from support.opened_sources import one_line, open_quietly

from cifar_dist.data import sources
from cifar_dist.data.dataset_file import find_dataset_file
from cifar_dist.data.index import index
from cifar_dist.data.pack import pack
from cifar_dist.data.source_suffixes import ARCHIVE_SUFFIXES
from cifar_dist.errors import UserError
from cifar_dist.files import checkout


def test_a_source_that_does_not_exist_suggests_the_nearest(tmp_path: Path) -> None:
    assert "did you mean 'digits'?" in one_line("digit")
    assert "no file, folder or dataset is called" in one_line(tmp_path / "nothing.tar.gz")
    assert "is not downloaded; download it, or name it with url = 'https://x.org/a.zip'" in one_line(
        "https://x.org/a.zip"
    )
    assert one_line("s3://bucket/a.tar").endswith("s3://bucket/a.tar is not downloaded; download it")
    assert "did you mean 'digits'?" in one_line("DIGITS")
    for name in ("C:\\Users\\me\\cats", "D:/cats"):
        assert "is a path of Windows; write it as this system does" in one_line(name)
    (tmp_path / "a.rar").write_bytes(b"x")
    readable = "is not a folder or a file that ends in .tar, .tar.gz, .tgz, .zip, .pkl, .pickle or .npz; "
    assert readable in one_line(tmp_path / "a.rar")
    for _ in ("does not exist", "exists"):
        says = "source '{0}' does not say what to use of that file; write {0}:Attribute"
        assert one_line(tmp_path / "bars.py").endswith(says.format(tmp_path / "bars.py"))
        (tmp_path / "bars.py").touch()


def test_a_name_outside_a_checkout_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "CHECKOUT", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    says = "no file, folder or dataset is called 'digits'; give the path of one, or run in a checkout of "
    assert says in one_line("digits")


def test_a_name_that_a_folder_has_too_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.write_folder(tmp_path / "digits", build.class_folder({"cat": 1, "dog": 2}))
    monkeypatch.chdir(tmp_path)
    dataset = find_dataset_file("digits")
    expected = f"'digits' is a dataset and a folder here; use {dataset} for the dataset, or ./digits for the folder"
    assert one_line("digits") == expected
    assert open_quietly(str(dataset)).name == "digits"
    assert open_quietly("./digits").data.classes == ("cat", "dog")


@pytest.mark.parametrize("how", ["absent", "empty", "packed"])
def test_a_name_alone_is_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """``pack digits digits`` works again and again."""
    monkeypatch.chdir(tmp_path)
    if how != "absent":
        Path("digits").mkdir()
    if how == "packed":
        pack("digits", "digits", codec="npy", show=False)
    assert open_quietly("digits").origin == {"kind": "embedded", "name": "digits"}


@pytest.mark.parametrize("name", ["images.npy", "train-images-idx3-ubyte.gz", "data.h5", "train_32x32.mat"])
def test_unsupported_file_formats_are_refused_with_a_supported_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert "save its arrays with: np.savez('NAME.npz', x_train=images, y_train=labels)" in one_line(tmp_path / name)


def test_a_reader_of_files_whose_suffix_is_not_listed_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would half work: the suffix would be part of the dataset's name, and a URL of such a file refused."""
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    path = build.write_npz(tmp_path / "two.npz", {"x_train": images, "y_train": [0, 1]})
    assert open_quietly(str(path)).name == "two"
    monkeypatch.setattr(sources, "FILE_SUFFIXES", ARCHIVE_SUFFIXES)
    with pytest.raises(AssertionError, match=r"add its suffix to FILE_SUFFIXES in cifar_dist/data/source_suffixes\.py"):
        open_quietly(str(path))


def test_files_written_on_windows_are_read(tmp_path: Path) -> None:
    """Editors there begin a text with a byte order mark, and end its lines with CR LF."""
    path = tmp_path / "mine.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "a"\r\nembedded = "digits"\r\n')
    assert open_quietly(str(path)).name == "a"
    build.cifar10_binary(tmp_path / "c")
    names = (tmp_path / "c" / "batches.meta.txt").read_text().replace("\n", "\r\n")
    (tmp_path / "c" / "batches.meta.txt").write_bytes(b"\xef\xbb\xbf" + names.encode())
    assert open_quietly(str(tmp_path / "c")).data.classes == tuple(build.CLASSES_10)


def test_the_digits_are_real_and_need_no_download() -> None:
    opened = open_quietly("digits")
    train = opened.data.splits["train"]
    assert train.images.shape == (1797, 32, 32, 3)
    assert opened.data.classes == tuple("0123456789")
    assert np.bincount(train.labels).min() >= 170
    # A one is narrow: its outer columns are dark, where a zero's are not.
    ink = [train.images[train.labels == digit][:, :, 20:26].mean() for digit in (0, 1)]
    assert ink[0] > ink[1]


def test_a_run_is_not_a_source(tmp_path: Path) -> None:
    """A run keeps the manifest of its dataset, and ``verify`` refuses a run."""
    run = pack("digits", tmp_path / "run", codec="npy", show=False).root
    (run / "config.toml").touch()
    says = f"{run} is a run, not a packed dataset; that of the run is data.path in its config.toml"
    assert one_line(run) == says
    with pytest.raises(UserError) as error:
        index(run, show=False)
    assert str(error.value) == says
