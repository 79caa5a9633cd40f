"""Image folders, as they are or in an archive, and their pixels."""

from __future__ import annotations

import io
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import dataset_builders as build
from support.opened_sources import one_line, open_quietly, same
from support.running import spawn
from support.without_rights import public_folder, without_rights

from cifar_dist.data.archives import Listing, list_members
from cifar_dist.data.image_folder import read_image_folder
from cifar_dist.data.statistics import channel_statistics, pixel_counts

LAYOUT = {"train/cat": 3, "train/dog": 2, "val/dog": 1, "test/cat": 2, "test/eel": 1}


def test_an_image_folder_is_the_same_as_folder_tar_and_zip(tmp_path: Path) -> None:
    files = build.class_folder(LAYOUT)
    wrapped = {f"mine/{name}": data for name, data in files.items()}
    backwards = dict(reversed(files.items()))
    folder = open_quietly(str(build.write_folder(tmp_path / "mine", files))).data

    assert folder.classes == ("cat", "dog", "eel")
    assert list(folder.splits) == ["train", "val", "test"]
    assert folder.splits["train"].labels.tolist() == [0, 0, 0, 1, 1]
    assert folder.splits["test"].labels.tolist() == [0, 0, 2]
    first = np.asarray(Image.open(io.BytesIO(files["train/cat/0000.png"])))
    assert np.array_equal(folder.splits["train"].images[0], first)
    for name, content in {
        "a.tar": wrapped,
        "a.tar.gz": backwards,
        "a.tgz": wrapped,
        "a.zip": {**backwards, "__MACOSX/train/cat/._0000.png": b"junk", "train/cat/.DS_Store": b"junk"},
    }.items():
        assert same(open_quietly(str(build.write_archive(tmp_path / name, content))).data, folder)


def test_without_split_folders_everything_is_train(tmp_path: Path) -> None:
    for prefix in ("", "top/"):
        files = {prefix + name: data for name, data in build.class_folder({"cat": 2, "dog": 1}).items()}
        data = open_quietly(str(build.write_archive(tmp_path / "a.zip", files))).data
        assert list(data.splits) == ["train"]
        assert data.splits["train"].labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["train/0000.png", "0000.png", "a/b/c/0000.png", "holiday/cat/0000.png"])
def test_an_image_in_the_wrong_place_is_named(tmp_path: Path, name: str) -> None:
    files = {**build.class_folder({"train/cat": 1}), name: build.image_file(build.random_images(1)[0])}
    assert f"'{name}' is not at SPLIT/CLASS/FILE" in one_line(build.write_folder(tmp_path / "f", files))


@pytest.mark.parametrize("name", ["cat/caf\udce9.png", "caf\udce9/0.png", "caf\udce9.txt"])
def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path, name: str) -> None:
    """Such a name cannot be written to a table of predictions, and an archive with it is refused."""
    source = build.write_folder(tmp_path / "in", {**build.class_folder({"cat": 1, "dog": 1}), name: b"x"})
    where = name.replace("\udce9", "\\udce9").removesuffix("/0.png")
    assert one_line(source) == f"{source}: the name '{where}' is not UTF-8; rename it"
    source = build.write_folder(tmp_path / "caf\udce9", build.class_folder({"cat": 1, "dog": 1}))
    assert "the name of" in one_line(source)


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1"])
def test_names_are_utf_8_or_refused_in_a_locale_of_another_encoding(tmp_path: Path, encoding: str) -> None:
    """Python reads each byte of a letter as one there, so classes and ids would have other names."""
    env = {"LC_ALL": "C", "LOCPATH": str(tmp_path / "locales"), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if encoding != "ascii":
        env["LC_ALL"] = "en_US.ISO-8859-1"
        (tmp_path / "locales").mkdir()
        words = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / "locales" / env["LC_ALL"])]
        if not shutil.which(words[0]) or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("this system cannot create the locale")
    for folder, name in (("a", "Äpfel"), ("b", "pears"), ("früchte", "pears")):
        build.write_folder(tmp_path / "in" / folder, build.class_folder({name: 1}))
    with tarfile.open(tmp_path / "in" / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:  # as the program tar writes it
        tar.add(tmp_path / "in" / "a", "a")
    code = """if True:
        from pathlib import Path
        from cifar_dist.data.archives import list_members, require_utf8_name
        from cifar_dist.errors import UserError
        for path in sorted(Path().iterdir()):
            try:
                require_utf8_name(path)
                print(*map(ascii, list_members(path, show=False).names))
            except UserError as refusal:
                print(refusal.args[0].partition("' ")[2])
    """
    refused = f"is read as {encoding}, by the locale; to read names as UTF-8: export PYTHONUTF8=1"
    (done,) = spawn(["-c", code], env=env, cwd=tmp_path / "in", fresh=True)
    shown = [refused, r"'a/\xc4pfel/0000.png'", "'pears/0000.png'", refused]
    assert done.stdout.splitlines() == shown, done.stderr


def zip_without_encoding(path: Path, names: Sequence[bytes]) -> Path:
    """Write a zip of one image for each class name, without the flag for UTF-8."""
    written = {name: letter * len(name) for name, letter in zip(names, "ABCD", strict=False)}
    data = build.write_archive(path, build.class_folder(dict.fromkeys(written.values(), 1))).read_bytes()
    for name, letters in written.items():
        data = data.replace(f"{letters}/0000.png".encode(), name + b"/0000.png")
    path.write_bytes(data)
    return path


def test_a_zip_from_a_mac_has_its_names(tmp_path: Path) -> None:
    """Finder writes names in UTF-8 without the flag that says so; older programs write them in code page 437."""
    stored = {"Käse": "Käse".encode(), "猫": "猫".encode(), "Öl": "Öl".encode("cp437"), "ox": b"ox"}
    path = zip_without_encoding(tmp_path / "a.zip", list(stored.values()))
    assert open_quietly(str(path)).data.classes == tuple(sorted(stored))


def unpacked_as_said(said: str, folder: Path, encoding: str) -> tuple[str, ...]:
    """Unpack a zip with the command that a message has; return the classes."""
    command = said.partition("use the folder: ")[2].partition(" (cp932 for Japanese")[0]
    words = [{"ENCODING": encoding, "FOLDER": str(folder)}.get(word, word) for word in shlex.split(command)]
    subprocess.run([sys.executable, *words[1:]], check=True)
    return open_quietly(str(folder)).data.classes


def test_names_of_a_zip_that_may_be_scrambled_are_noted(tmp_path: Path) -> None:
    """Japanese Windows writes 犬 with the bytes that Western European Windows writes for îó."""
    path = zip_without_encoding(tmp_path / "a b.zip", ["犬".encode("cp932"), "猫".encode("cp932"), b"ox"])
    data = open_quietly(str(path)).data
    assert data.classes == ("ox", "îó", "öL")
    note = next(note for note in data.notes if "encoding" in note)
    assert note.startswith(
        f"{path} does not name the encoding of 2 names, read as 'îó/0000.png'; if that is scrambled, "
    )
    assert unpacked_as_said(note, tmp_path / "unpacked", "cp932") == ("ox", "犬", "猫")


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("狗狗", "gbk"), ("груша", "cp866"), ("груша", "cp1251"), ("ソニー", "cp932")],
)
def test_a_zip_with_names_in_an_encoding_that_it_does_not_name_is_refused(
    tmp_path: Path, name: str, encoding: str
) -> None:
    """Read as code page 437 they would be scrambled classes, and a backslash in them would be a folder."""
    path = zip_without_encoding(tmp_path / "a.zip", [name.encode(encoding), b"emu"])
    said = one_line(str(path))
    assert "is in an encoding that the archive does not name; unpack it" in said
    assert unpacked_as_said(said, tmp_path / "unpacked", encoding) == ("emu", name)


def test_a_folder_of_anything_else_says_what_is_expected(tmp_path: Path) -> None:
    assert "SPLIT/CLASS/FILE.png" in one_line(build.write_folder(tmp_path / "f", {"notes.txt": b"hello"}))


def test_a_file_or_folder_that_cannot_be_read_is_named() -> None:
    with public_folder() as root:
        build.write_folder(root, build.class_folder({"cat": 2, "dog": 2}))
        for name in ("cat/0001.png", "dog"):
            path = root / name
            mode = path.stat().st_mode
            path.chmod(0)
            with without_rights():
                assert one_line(root) == f"{path} cannot be read: Permission denied"
            path.chmod(mode)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    files = build.class_folder({"cat": 3})
    files["cat/0001.png"] = files["cat/0001.png"][:100]
    assert "'cat/0001.png' is not an intact PNG, JPEG, WebP, BMP or GIF image" in one_line(
        build.write_folder(tmp_path / "f", files)
    )


def test_images_of_different_sizes_ask_for_size(tmp_path: Path) -> None:
    files = build.class_folder({"cat": 1})
    files["dog/0000.png"] = build.image_file(np.zeros((20, 40, 3), np.uint8))
    folder = build.write_folder(tmp_path / "f", files)
    assert one_line(folder).endswith(
        "images differ in size ('cat/0000.png' is 32x32, 'dog/0000.png' is 40x20); add --size 32 to resize them all"
    )
    assert open_quietly(str(folder), 16).data.splits["train"].images.shape == (2, 16, 16, 3)


def test_every_colour_mode_becomes_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((8, 8), 7, np.uint8))
    files = {}
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        data = io.BytesIO()
        grey.convert("RGB").convert(mode, palette=Image.Palette.ADAPTIVE).save(
            data, format="JPEG" if mode == "CMYK" else "PNG"
        )
        files[f"grey/{mode}.{'jpg' if mode == 'CMYK' else 'png'}"] = data.getvalue()
    images = open_quietly(str(build.write_folder(tmp_path / "f", files))).data.splits["train"].images
    assert images.shape == (5, 8, 8, 3)
    assert images.max() <= 8  # 7, or 0 after dithering to black and white


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(data, format="PNG")
    assert "more than 8 bits" in one_line(build.write_folder(tmp_path / "f", {"deep/a.png": data.getvalue()}))


def test_a_tenth_of_the_real_jpeg_archive(cifar_files: Path) -> None:
    names = list_members(cifar_files / "cifar10-jpeg.tar.gz", show=False).names
    assert len(names) == 55_000
    data = read_image_folder(cifar_files / "cifar10-jpeg.tar.gz", Listing(names[::10], []), show=False)
    assert data.classes == tuple(build.CLASSES_10)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 5000, "test": 500}
    assert np.bincount(data.splits["train"].labels).tolist() == [500] * 10
    mean, std = channel_statistics(pixel_counts(data.splits["train"].images))
    assert mean == pytest.approx((0.4913, 0.4821, 0.4465), abs=0.01)  # of all 50,000
    assert std == pytest.approx((0.2452, 0.2428, 0.2606), abs=0.01)
