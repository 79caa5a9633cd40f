"""Malicious archives, images and arrays are refused with one line, and nothing is written."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import dataset_builders as build
from support.opened_sources import open_quietly

from cifar_dist.data import archive_member, archives
from cifar_dist.data.archives import list_members, read_members
from cifar_dist.data.image_folder import decode_image
from cifar_dist.data.pack import pack
from cifar_dist.errors import UserError

IMAGE = build.image_file(build.random_images(1)[0])


def refusal(path: Path) -> str:
    """Return the message with which pack refuses a source; assert that it changes nothing on disk."""
    before = build.read_folder(path.parent)
    with pytest.raises(UserError) as error:
        pack(path, path.parent / "packed", show=False)
    message = str(error.value)
    assert "\n" not in message
    assert message.isprintable()
    assert str(path) in message
    assert build.read_folder(path.parent) == before
    return message


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize(
    "name",
    ["../x.png", "train/../../x.png", "/etc/x.png", "a\\..\\..\\x.png", "\\x.png", "C:/x.png", "cat/../dog/x.png"],
)
def test_a_member_that_would_leave_the_folder_is_named(tmp_path: Path, suffix: str, name: str) -> None:
    path = build.write_archive(tmp_path / f"a{suffix}", {"cat/0.png": IMAGE, name: IMAGE})
    assert f"the member name '{name}' leads out of the folder" in refusal(path)


@pytest.mark.parametrize("name", ["cat/\x1b[2J.png", "cat/a\nb.png", "cat/\x7f.png", "cat/\u202egnp.exe"])
def test_a_member_name_cannot_write_to_the_terminal(tmp_path: Path, name: str) -> None:
    assert "is not printable" in refusal(build.write_archive(tmp_path / "a.tar", {name: IMAGE}))


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_names_that_systems_give_are_read(tmp_path: Path, suffix: str) -> None:
    """A narrow space in the time of a screenshot, a joiner in an emoji, and the icon of a folder of macOS."""
    names = ["cat/5.03\u202fPM.png", "dog/\U0001f469\u200d\U0001f52c.png", "dog/1\xa02.png"]
    path = build.write_archive(tmp_path / f"a{suffix}", {**dict.fromkeys(names, IMAGE), "cat/Icon\r": b""})
    data = open_quietly(str(path)).data
    assert data.names["train"] == tuple(sorted(names))
    assert not data.notes


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device, a pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
    ],
)
def test_only_files_are_read_from_a_tar(tmp_path: Path, kind: bytes, word: str) -> None:
    info = tarfile.TarInfo("cat/link.png")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(info)
    message = refusal(tmp_path / "a.tar")
    assert "'cat/link.png' is " in message
    assert word in message


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("cat/link.png")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "'cat/link.png' is a link" in refusal(tmp_path / "a.zip")


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("cat/0.png", "./cat/0.png"):
            info = tarfile.TarInfo(name)
            info.size = len(IMAGE)
            tar.addfile(info, io.BytesIO(IMAGE))
    assert "contains 'cat/0.png' twice" in refusal(tmp_path / "a.tar")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.5, 0.7, 0.98])
def test_a_truncated_archive_is_refused(tmp_path: Path, suffix: str, part: float) -> None:
    path = build.write_archive(tmp_path / f"a{suffix}", build.class_folder({"train/cat": 20}))
    data = path.read_bytes()
    end = len(data) if suffix != ".tar" else len(data.rstrip(b"\0"))  # a tar ends with blocks of zeros
    path.write_bytes(data[: int(part * end)])
    assert "corrupt, truncated or not an archive" in refusal(path)


def test_a_tar_that_is_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    files = build.class_folder({"train/cat": 3})
    path = build.write_archive(tmp_path / "a.tar", files)
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    path.write_bytes(path.read_bytes()[:third])
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 2  # Python takes it for whole
    assert "it has no end-of-archive marker" in refusal(path)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_a_tar_that_programs_read_in_part_is_refused(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    """They take a damaged header, and the end of the first of two joined tars, for the end of the archive."""
    path = build.write_archive(tmp_path / "a.tar", build.class_folder({"train/cat": 9, "train/dog": 9}))
    with tarfile.open(path) as tar:
        header = tar.getmembers()[5].offset
    content = path.read_bytes()
    members = content.rstrip(b"\0")
    path.write_bytes(compress(members + bytes(1024 - len(members) % -512) + content))
    assert "data follows its end, as in tars joined with cat; tar -xif unpacks all of them" in refusal(path)
    damaged = bytearray(content)
    damaged[header + 3] ^= 1
    path.write_bytes(compress(bytes(damaged)))
    assert "a member's header is damaged" in refusal(path)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>not found</html>", bytes(100), b"\x1f\x8b\x08junk"])
def test_what_is_not_an_archive_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    refusal(path)


def test_a_gzip_bomb_is_not_decompressed(tmp_path: Path) -> None:
    """A hundred kilobytes that decompress to a hundred megabytes, in a member that is not needed."""
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        info = tarfile.TarInfo("readme.txt")
        info.size = 100 << 20
        file.write(info.tobuf())
        for _ in range(100):
            file.write(bytes(1 << 20))
    assert "more than 100 times its size" in refusal(tmp_path / "a.tar.gz")


def test_a_zip_bomb_is_not_decompressed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(5):
            archive.writestr(f"cat/{n}.png", bytes(16 << 20))
    assert "more than 100 times its size" in refusal(tmp_path / "a.zip")


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    path = build.write_archive(tmp_path / "a.zip", {"cat/0.png": IMAGE})
    data = bytearray(path.read_bytes())
    for header, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(header) + offset, 10)
    path.write_bytes(data)
    refusal(path)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = build.write_archive(tmp_path / "a.zip", {"cat/0.png": IMAGE})
    data = bytearray(path.read_bytes())
    for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(header) + offset] |= 1
    path.write_bytes(data)
    assert "is encrypted; extract it with its password" in refusal(path)


def test_a_zip_of_a_compression_that_python_lacks_is_to_be_unpacked(tmp_path: Path) -> None:
    path = build.write_archive(tmp_path / "a.zip", {"cat/0.png": IMAGE})
    data = bytearray(path.read_bytes())
    for header, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(header) + offset] = 9  # Deflate64, of Windows
    path.write_bytes(data)
    assert "is compressed in a way that is not read (That compression method is not supported); unpack" in refusal(path)


@pytest.mark.parametrize("size", [1 << 40, (1 << 30) + 1, -1, -(1 << 40)])
def test_a_member_that_claims_a_terabyte_is_refused(tmp_path: Path, size: int) -> None:
    info = tarfile.TarInfo("cat/0.png")
    info.size = size
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "is corrupt, truncated or not an archive" in refusal(tmp_path / "a.tar")


@pytest.mark.parametrize("suffix", ["", ".tar", ".tar.gz", ".zip"])
def test_only_a_file_that_is_read_must_be_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """A video or a database may be beside the images."""
    write = build.write_archive if suffix else build.write_folder
    source = write(tmp_path / f"a{suffix}", {**SMALL, "cat/video.mp4": bytes(5000), "zebra.sqlite": bytes(5000)})
    monkeypatch.setattr(archive_member, "MAX_MEMBER", 4000)
    assert pack(source, tmp_path / "out", val_fraction=0, show=False).samples("train") == 3
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(archive_member, "MAX_MEMBER", 2)
    assert "bytes; the limit is 2" in refusal(source)


def test_a_long_name_that_claims_a_terabyte_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    refusal(tmp_path / "a.tar")


def test_folders_that_lead_into_themselves_end(tmp_path: Path) -> None:
    build.write_folder(tmp_path / "f", {"cat/0.png": IMAGE})
    (tmp_path / "f" / "cat" / "loop").symlink_to(tmp_path / "f")
    assert "'cat/loop' is a link to a folder that contains it" in refusal(tmp_path / "f")


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (_png(60000, 60000), "decompression bomb"),
        (_png(5000, 50), "5000x50 pixels; shrink it to at most 4096 a side"),
        (_png(4096, 4096, b"x"), "not an intact PNG, JPEG"),
        (IMAGE[:-40], "not an intact PNG, JPEG"),
        (b"", "not an intact PNG, JPEG"),
        (b"GIF89a" + bytes(40), "not an intact PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an intact PNG, JPEG"),
    ],
    ids=["bomb", "large", "no pixels", "cut short", "empty", "gif", "postscript"],
)
def test_a_hostile_image_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        decode_image(data, "a.zip: 'cat/0.png'")


def test_an_npz_with_objects_in_it_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", data=np.array([object, 1], dtype=object), ids=np.arange(2))
    assert "convert it to numbers, as in y_train.astype('int64')" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (100000000000,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os').system('true'), }",
        "[" * 9000,
    ],
)
def test_an_npz_whose_header_lies_is_refused(tmp_path: Path, header: str) -> None:
    text = header.ljust(10_100)[:60_000].encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"x"
    refusal(build.write_archive(tmp_path / "a.zip", {"data.npy": data, "ids.npy": data}).rename(tmp_path / "a.npz"))


SMALL = build.class_folder({"cat": 2, "dog": 1}, side=4)


@pytest.fixture(scope="module", params=[".tar", ".tar.gz", ".zip"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.write_archive(tmp_path_factory.mktemp("archive") / f"a{request.param}", SMALL)


@settings(deadline=None, max_examples=120)
@given(changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_to_an_archive_gives_files_or_one_line(whole: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(whole.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    damaged = whole.with_name(f"damaged{''.join(whole.suffixes)}")
    damaged.write_bytes(data)
    message = ""
    try:
        names = list_members(damaged, show=False).names
        content = dict(read_members(damaged, set(names)))
        assert sorted(content) == sorted(names)
    except UserError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("module", "limit", "says"),
    [(archives, "MAX_MEMBERS", "more than 2 files"), (archive_member, "MAX_MEMBER", "the limit is 2")],
)
def test_the_limits_apply_to_folders_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, limit: str, says: str
) -> None:
    monkeypatch.setattr(module, limit, 2)
    assert says in refusal(build.write_folder(tmp_path / "f", SMALL))
