"""The pixels of a dataset are those that an image viewer shows, and every conversion is reported."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support import dataset_builders as build
from support.running import spawn

from cifar_dist.data.image_files import MAX_SIDE
from cifar_dist.data.image_folder import decode_image
from cifar_dist.data.index import index
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.pack import pack
from cifar_dist.data.read import ShardReader
from cifar_dist.data.verify import verify
from cifar_dist.errors import UserError

# Four colours tell all eight orientations apart.
UPRIGHT = Image.fromarray(
    np.kron(
        np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8), np.ones((8, 8, 1), np.uint8)
    )
)
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def saved(image: Image.Image, form: str = "PNG", **how: object) -> bytes:
    data = io.BytesIO()
    image.save(data, format=form, **how)
    return data.getvalue()


def turned(orientation: int, form: str) -> bytes:
    """Return the upright picture as a camera in another orientation stores it."""
    turn = STORED_AS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    return saved(UPRIGHT if turn is None else UPRIGHT.transpose(turn), form, exif=exif, **how)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_every_orientation_is_turned_upright(orientation: int, form: str) -> None:
    image = decode_image(turned(orientation, form), "x")
    assert np.abs(image.astype(int) - np.asarray(UPRIGHT)).max() <= 4  # of JPEG


def test_damaged_exif_data_does_not_matter() -> None:
    image = saved(UPRIGHT, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(decode_image(image, "x"), np.asarray(UPRIGHT))


def test_what_pillow_warns_of_does_not_matter(tmp_path: Path) -> None:
    """In a process of its own, because pytest shows all warnings."""
    no_frames = struct.pack(">I4sII", 8, b"acTL", 0, 0)
    data = saved(UPRIGHT)
    palette = UPRIGHT.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    odd = {
        "a/exif.png": saved(UPRIGHT, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "a/palette.png": saved(palette, transparency=bytes([255] * 4)),
        "b/animation.png": data[:33] + no_frames + struct.pack(">I", zlib.crc32(no_frames[4:])) + data[33:],
        "b/plain.png": data,
    }
    source = build.write_folder(tmp_path / "in", odd)
    words = ["pack", str(source), str(tmp_path / "out"), "--val-fraction", "0"]
    (done,) = spawn(["-m", "cifar_dist", *words], fresh=True)
    assert "Warning" not in done.stderr, done.stderr
    for image in ShardReader(Manifest.load(tmp_path / "out"), "train").all().numpy():
        assert np.array_equal(image, np.asarray(UPRIGHT))


def half_transparent(colour: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    """Return a square of one colour whose left half is transparent."""
    image = Image.new("RGBA", (8, 8), (*colour, 255))
    image.paste((*colour, 0), (0, 0, 4, 8))
    return image


def palette(key: int) -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([90, 90, 90, 0, 0, 0])
    image.paste(key, (0, 0, 4, 8))
    return image


def png(depth: int, colour: int, rows: bytes, *, side: int = 8, key: bytes = b"") -> bytes:
    """Return a square PNG with so many bits per channel, and the value ``key`` of its transparent pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    header += chunk(b"tRNS", key) if key else b""
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey_key_png(depth: int) -> bytes:
    """Return a grey PNG whose left half has the value 2, which is transparent, and whose right half is black."""
    row = sum(2 << depth * pixel for pixel in range(4, 8)).to_bytes(depth, "big")
    return png(depth, 0, (b"\0" + row) * 8, key=b"\0\2")


TRANSPARENT: Mapping[str, Callable[[], bytes]] = {
    "rgba.png": lambda: saved(half_transparent()),
    "grey and alpha.png": lambda: saved(half_transparent().convert("LA")),
    "palette.png": lambda: saved(palette(0), transparency=0),
    "palette.gif": lambda: saved(palette(0), "GIF", transparency=0),
    "colour key.png": lambda: saved(
        Image.fromarray(np.repeat(np.array([[[9] * 3] * 4 + [[0] * 3] * 4], np.uint8), 8, 0)), transparency=(9, 9, 9)
    ),
    "rgba.webp": lambda: saved(half_transparent(), "WEBP", lossless=True),
    **{f"grey key of {depth} bits.png": partial(grey_key_png, depth) for depth in (2, 4, 8)},
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_are_white(name: str) -> None:
    image = decode_image(TRANSPARENT[name](), "x")
    assert image[:, :4].min() == 255
    assert image[:, 4:].max() == 0


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    colours = build.random_images(1, side=16)[0]
    rgba = np.concatenate([colours, np.full((16, 16, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(decode_image(build.image_file(rgba), "x"), colours)


def deep_png(side: int = 8) -> bytes:
    """Return a PNG with 16 bits per channel whose high bytes are 10, 20 and 30."""
    return png(16, 2, (b"\0" + bytes([10, 200, 20, 200, 30, 200]) * side) * side, side=side)


def animation(form: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    return saved(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)


def test_pack_counts_what_it_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = {f"{name}/plain.png": saved(Image.new("RGB", (8, 8))) for name in ("a", "b")}
    changed = {
        "a/1.png": saved(half_transparent()),
        "a/2.gif": animation("GIF"),
        "a/3.webp": animation("WEBP"),
        "a/4.jpg": saved(Image.new("CMYK", (8, 8)), "JPEG"),
        "b/5.png": deep_png(),
        "b/6.jpg": turned(8, "JPEG"),
        "b/7.png": turned(3, "PNG"),
    }
    source = build.write_folder(tmp_path / "source", {**plain, **changed})
    manifest = pack(source, tmp_path / "out", size=8, val_fraction=0)
    assert [
        line.removeprefix("note: ") for line in capsys.readouterr().err.splitlines() if line.startswith("note")
    ] == [
        "images of several formats: 5 .png, 1 .gif, 1 .webp, 2 .jpg",
        "composited over white, because of transparent pixels: 1 of 9 images",
        "converted from CMYK to RGB without a colour profile: 1 of 9 images",
        "reduced from 16 to 8 bits per channel: 1 of 9 images",
        "reduced to the first frame of an animation: 2 of 9 images",
        "resized to 8x8 pixels: 2 of 9 images",
        "turned upright, as the EXIF orientation says: 2 of 9 images",
        "images that another class has, too: 1: 'b/plain.png'",
    ]
    images: dict[int, NDArray[np.uint8]] = {
        int(key): ShardReader(manifest, "train").image(row) for row, key in enumerate(manifest.keys("train"))
    }
    assert images[1][0, 0].tolist() == [255, 0, 0]  # the first frame
    assert images[5][0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_indexed_tars_show_the_same_pixels(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The suffix may be wrong, because webdataset's decoders inspect the content too."""
    members = {"a": turned(6, "JPEG"), "b": saved(half_transparent().resize((16, 16), Image.Resampling.NEAREST))}
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for label, (key, data) in enumerate(members.items()):
            for name, content in ((f"{key}.{suffix}", data), (f"{key}.cls", str(label).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    manifest = index(tmp_path)
    said = capsys.readouterr().err
    assert "turned upright, as the EXIF orientation says: 1 of 2 images" in said
    assert "composited over white, because of transparent pixels: 1 of 2 images" in said
    verify(tmp_path, show=False)
    images = ShardReader(manifest, "train").all().numpy()
    assert np.abs(images[0].astype(int) - np.asarray(UPRIGHT)).max() <= 4
    assert images[1][:, :8].min() == 255


def test_a_large_photo_is_shrunk_with_size_and_refused_without(tmp_path: Path) -> None:
    photo = saved(Image.new("RGB", (MAX_SIDE + 1, 40), (90, 120, 40)), "JPEG")
    files = {"a/0.jpg": photo, "b/0.jpg": saved(UPRIGHT, "JPEG")}
    source = build.write_folder(tmp_path / "source", files)
    assert pack(source, tmp_path / "out", size=16, show=False).shape == (16, 16, 3)
    with pytest.raises(UserError, match="pack with --size N, which shrinks all"):
        pack(source, tmp_path / "out", show=False)
