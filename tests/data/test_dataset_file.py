"""Dataset files, which name an archive to download and how to pack it."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import dataset_builders as build
from support.crashing import dies_at
from support.file_limit import error_of
from support.opened_sources import one_line, open_quietly
from support.without_rights import public_folder, without_rights

from cifar_dist.data.dataset_file import DatasetFile
from cifar_dist.data.download import locate_archive
from cifar_dist.data.sources import Source
from cifar_dist.errors import UserError
from cifar_dist.terminal import progress


def dataset_file(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_dataset_file_names_an_archive_and_its_treatment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.write_archive(tmp_path / "animals.zip", build.class_folder({"cat": 3, "dog": 2}))
    path = dataset_file(
        tmp_path, 'name = "pets"\narchive = "animals.zip"\nsize = 8\nval_fraction = 0.5\nclasses = ["dog", "cat"]\n'
    )
    opened: Source = open_quietly(str(path))
    assert (opened.name, opened.val_fraction, opened.test_fraction) == ("pets", 0.5, None)
    assert opened.data.classes == ("dog", "cat")
    assert opened.data.splits["train"].labels.tolist() == [1, 1, 1, 0, 0]
    assert opened.data.splits["train"].images.shape == (5, 8, 8, 3)
    (tmp_path / "shards").mkdir()
    path.rename(tmp_path / "shards" / "pets.toml")
    monkeypatch.chdir(tmp_path)  # the archive is now in the working folder
    assert open_quietly("pets").name == "pets"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            'name = "a"\nembedded = "digits"\nval_fracton = 0.1',
            "unknown key 'val_fracton'; did you mean 'val_fraction'?",
        ),
        ('name = "a"', "set either embedded"),
        ('embedded = "digits"', "the key 'name' is missing"),
        ('name = "a"\nembedded = "faces"', "embedded = 'faces'"),
        ('name = "a"\nembedded = "digits"\nval_fraction = 1.0', "val_fraction = 1.0"),
        ('name = "a"\nembedded = "digits"\nsize = "32"', "size = '32'"),
        ('name = "../a"\nembedded = "digits"', "name = '../a': use at most 128 letters, digits, '_', '-', '.' and '+'"),
        ('name = "a"\narchive = "a"\nmd5 = "F"', "md5 = 'F': use the 32 digits 0 to 9 and a to f that md5sum prints"),
        ('name = "a"\nurl = "https://example.org/a.zip"', "url requires md5"),
        (f'name = "a"\nurl = "file:///etc/passwd"\nmd5 = "{"0" * 32}"', "not an http:// or https:// URL"),
        (f'name = "a"\nurl = "https://e.org/a.zip"\nmd5 = "{"0" * 32}"\narchive = "../a"', "plain file name"),
        *(
            (
                f'name = "a"\nmd5 = "{"0" * 32}"\n{source}',
                f"the name '{name}' does not say what the URL sends; add a name that ends in .tar, .tar.gz, .tgz, "
                '.zip, .pkl, .pickle or .npz, for example archive = "NAME.zip"',
            )
            for source, name in (
                ('url = "https://e.org/download/17"', "17"),
                ('url = "https://e.org/a.zip"\narchive = "a"', "a"),
            )
        ),
        ("name = ", "cannot be read as TOML"),
        (
            'name = "a"\nembedded = "digits"\nclasses = ["one", "two"]',
            "lists 2 names, but the source has 10 classes",
        ),
        (f'name = "a"\narchive = "."\nmd5 = "{"0" * 32}"', "is a folder; remove md5"),
        ('name = "a"\narchive = ""', "archive = '': String should have at least 1 character"),
        ('name = "a"\narchive = "gone.zip"', "the archive 'gone.zip' does not exist in"),
        ('name = "a"\narchive = "/gone/a.zip"', "the archive '/gone/a.zip' does not exist; correct the path"),
        ('name = "a"\narchive = "$CIFAR_DIST_UNSET/a.zip"', "the variable $CIFAR_DIST_UNSET in"),
    ],
)
def test_a_wrong_dataset_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    message = one_line(dataset_file(tmp_path, text))
    assert complaint in message
    assert "mine.toml" in message


def test_class_names_for_a_source_without_labels_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", data=build.random_images(2), ids=np.arange(2))
    message = one_line(dataset_file(tmp_path, 'name = "a"\narchive = "a.npz"\nclasses = ["x", "y"]'))
    assert message.endswith("classes names the classes of a source that has no labels; remove classes")


def test_the_archive_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.write_folder(tmp_path / "home" / "pets", build.class_folder({"cat": 3, "dog": 2}))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = dataset_file(tmp_path, 'name = "a"\narchive = "~/pets"\n')
    assert len(open_quietly(str(path)).data.splits["train"]) == 5


def test_the_names_of_a_cifar_archive_in_another_order_permute_its_labels(tmp_path: Path) -> None:
    build.cifar10(tmp_path / "c")
    own = open_quietly(str(tmp_path / "c")).data
    names = list(reversed(own.classes))
    data = open_quietly(str(dataset_file(tmp_path, f'name = "a"\narchive = "c"\nclasses = {names}\n'))).data
    assert data.classes == tuple(names)
    assert data.splits["train"].labels.tolist() == [9 - label for label in own.splits["train"].labels]
    assert data.notes == own.notes


def test_other_names_rename_the_classes_of_a_cifar_archive_and_are_noted(tmp_path: Path) -> None:
    build.cifar10(tmp_path / "c")
    own = open_quietly(str(tmp_path / "c")).data
    names = [*(f"new {n}" for n in range(5)), *own.classes[5:]]
    data = open_quietly(str(dataset_file(tmp_path, f'name = "a"\narchive = "c"\nclasses = {names}\n'))).data
    assert data.classes == tuple(names)
    assert data.splits["train"].labels.tolist() == own.splits["train"].labels.tolist()
    renamed = ", ".join(f"{name} -> new {n}" for n, name in enumerate(own.classes[:3]))
    assert data.notes[-1] == f"renamed: {renamed} and 2 more"


def test_names_for_numbered_classes_are_not_noted(tmp_path: Path) -> None:
    build.labelled_npz(tmp_path / "a.npz", 9)
    path = dataset_file(tmp_path, 'name = "a"\narchive = "a.npz"\nclasses = ["x", "y", "z"]\n')
    assert (open_quietly(str(path)).data.classes, open_quietly(str(path)).data.notes) == (("x", "y", "z"), ())


def test_class_names_may_be_in_any_unicode_form(tmp_path: Path) -> None:
    """An editor on macOS may write the decomposed form."""
    build.write_folder(tmp_path / "in", build.class_folder({"caf\u00e9": 3, "tea": 2}))
    path = dataset_file(tmp_path, 'name = "a"\narchive = "in"\nclasses = ["tea", "cafe\u0301"]\n')
    assert open_quietly(str(path)).data.classes == ("tea", "caf\u00e9")


def test_the_checksum_of_a_local_archive_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The MD5 of six gigabytes takes half a minute."""
    monkeypatch.setattr(progress, "is_terminal", lambda stream: True)
    data = build.write_archive(tmp_path / "a.zip", build.class_folder({"cat": 3})).read_bytes()
    text = f'name = "a"\narchive = "a.zip"\nmd5 = "{hashlib.md5(data).hexdigest()}"\n'
    path = dataset_file(tmp_path, text)
    locate_archive(DatasetFile.load(path), path)
    assert "computing the checksum of a.zip ..." in capsys.readouterr().err


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Start an HTTP server on this machine; yield its address and the folder that it serves."""
    served = tmp_path / "served"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(served))
    ) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", served
        running.shutdown()
        thread.join()


def test_an_archive_is_fetched_once_checked_and_kept(tmp_path: Path, server: tuple[str, Path]) -> None:
    url, served = server
    data = build.write_archive(served / "a.zip", build.class_folder({"cat": 2})).read_bytes()
    md5 = hashlib.md5(data).hexdigest()
    path = dataset_file(tmp_path, f'name = "a"\nurl = "{url}/a.zip"\nmd5 = "{md5}"\n')
    assert len(open_quietly(str(path)).data.splits["train"]) == 2
    assert (tmp_path / "a.zip").read_bytes() == data
    (served / "a.zip").unlink()
    assert len(open_quietly(str(path)).data.splits["train"]) == 2  # from the local copy

    (tmp_path / "a.zip").write_bytes(data[:-1])
    assert f"but {path} requires {md5}" in one_line(path)


def test_a_failed_download_leaves_nothing_and_says_which_file_goes_where(
    tmp_path: Path, server: tuple[str, Path]
) -> None:
    url, served = server
    (served / "a.zip").write_bytes(b"not what was asked for")
    for name, complaint in (("a.zip", "has the MD5"), ("gone.zip", "cannot download")):
        path = dataset_file(tmp_path, f'name = "a"\nurl = "{url}/{name}"\nmd5 = "{"0" * 32}"\n')
        message = one_line(path)
        assert complaint in message
        assert f"{url}/{name}" in message
        assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.toml", "served"]
    assert message.endswith(f"copy it to {tmp_path / 'gone.zip'}")


def test_what_a_killed_download_left_is_named(
    tmp_path: Path, server: tuple[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    url, served = server
    data = build.write_archive(served / "a.zip", build.class_folder({"cat": 2})).read_bytes()
    path = dataset_file(tmp_path, f'name = "a"\nurl = "{url}/a.zip"\nmd5 = "{hashlib.md5(data).hexdigest()}"\n')
    moment = 1
    while not (found := list(tmp_path.glob(".*"))):  # the process dies at a later moment each time
        assert dies_at(moment, lambda: locate_archive(DatasetFile.load(path), path, show=False), tmp_path)
        moment += 1
    (left,) = found
    (tmp_path / ".other.zip.1.tmp").touch()
    locate_archive(DatasetFile.load(path), path, show=False)
    said = capfd.readouterr().err
    assert said.startswith(f"note: {left.name} (0 B) was left by a download that was killed, ")
    assert said.endswith(f"; delete it: rm {left}\n")
    assert said.count("\n") == 1
    assert left.exists()


def test_a_downloaded_archive_that_cannot_be_written_is_not_the_fault_of_the_network(
    tmp_path: Path, server: tuple[str, Path]
) -> None:
    url, served = server
    (served / "a.zip").write_bytes(bytes(3 << 20))
    path = dataset_file(tmp_path, f'name = "a"\nurl = "{url}/a.zip"\nmd5 = "{"0" * 32}"\n')

    def download() -> None:
        try:
            locate_archive(DatasetFile.load(path), path, show=False)
        except UserError as error:
            raise OSError(str(error)) from None

    assert error_of(download, limit=1 << 20) == (
        f"{tmp_path / 'a.zip'} cannot be written (File too large); free space there or allow it, or download "
        f"{url}/a.zip to the working directory"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.toml", "served"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_download() -> None:
    url = "http://127.0.0.1:9/a.zip"  # nothing answers there
    with public_folder() as folder:
        path = dataset_file(folder, f'name = "a"\nurl = "{url}"\nmd5 = "{"0" * 32}"\n')
        with without_rights():
            message = one_line(path)
    assert message == (
        f"{folder / 'a.zip'} cannot be written (the folder is read-only for you); free space there or allow it, or "
        f"download {url} to the working directory"
    )


def test_a_disk_that_becomes_read_only_during_a_download_is_named(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, served = server
    (served / "a.zip").write_bytes(b"x")
    path = dataset_file(tmp_path, f'name = "a"\nurl = "{url}/a.zip"\nmd5 = "{"0" * 32}"\n')

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=r"a\.zip cannot be written \(Read-only file system\); free space there"):
        locate_archive(DatasetFile(name="a", url=f"{url}/a.zip", md5="0" * 32), path, show=False)
