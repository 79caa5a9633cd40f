"""``verify`` of images without labels, in a folder or an archive, and of what only looks like them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import dataset_builders as build

from cifar_dist import cli
from cifar_dist.errors import UserError

IMAGE = build.image_file(build.random_images(1, side=6)[0])


@pytest.mark.parametrize("packed", ["folder", "hidden.zip", "hidden.tgz", "hidden.tar"])
@pytest.mark.parametrize("inside", ["", "test/", "images/"])
def test_unlabelled_images_are_checked_as_predict_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: str, inside: str
) -> None:
    files = {f"{inside}{n}.png": IMAGE for n in (7, 5, 10)}
    path, write = tmp_path / packed, build.write_folder if packed == "folder" else build.write_archive
    write(path, {**files, f"{inside}notes.txt": b""})
    assert cli.run(["verify", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{path}: 3 images of 6x6x3, with unique ids from 5 to 10\n"
    assert f"passed over 1 file not named as an image: '{inside}notes.txt'\n" in said.err

    large = build.image_file(build.random_images(1, side=8)[0])
    write(path, {**files, f"{inside}5.png": large, f"{inside}a.png": IMAGE})
    assert cli.run(["verify", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{path}: 4 images of 2 sizes, with unique ids from '5.png' to 'a.png'\n"
    (note,) = [line for line in said.err.splitlines() if "can predict images of several sizes: " in line]
    assert f"'{inside}5.png' is 8x8" in note

    write(path, {**files, f"{inside}7.png": IMAGE[:40]})
    with pytest.raises(UserError, match=f"{path}: '{inside}7.png' is not an intact PNG"):
        cli.run(["verify", str(path)])


def test_a_folder_that_is_neither_packed_nor_without_classes_is_to_be_packed_or_indexed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for files, verb in (
        ({"cat/0.png": IMAGE, "dog/0.png": IMAGE}, "pack"),
        ({"cat/0.png": IMAGE, "dog/0.png": IMAGE, "1.png": IMAGE}, "pack"),
        ({"0.png": IMAGE, "0.cls": b"1"}, "pack"),
        ({"notes.txt": b""}, "pack"),
        ({"0.png": IMAGE, "0.tar": b""}, "index"),
    ):
        shutil.rmtree(tmp_path / "images")
        path = build.write_folder(tmp_path / "images", files)
        with pytest.raises(UserError, match=f": cifar-dist {verb} {path}"):
            cli.run(["verify", str(path)])
    (path / "link.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=f": cifar-dist {verb} {path}"):
        cli.run(["verify", str(path)])


def test_an_archive_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    archive = build.write_archive(tmp_path / "hidden.zip", {"0.png": IMAGE})
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(UserError, match=f"^{archive} is corrupt, truncated or not an archive"):
        cli.run(["verify", str(archive)])
