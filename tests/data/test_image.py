"""Images that take the short way through the decoder are those of the long way, whatever happens to their bytes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from cifar_dist.data.image import COMPOSITED, REDUCED, decode, decode_rgb, encode
from cifar_dist.data.image_files import MAX_SIDE

SIDES = st.integers(1, 40)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def the_long_way(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels, or None for what cannot be decoded."""
    try:
        return np.asarray(decode_rgb(data, ("PNG", "JPEG", "WEBP")).image)
    except Exception:
        return None


def decoded(data: bytes) -> NDArray[np.uint8] | None:
    try:
        return decode(data, "png")
    except Exception:
        return None


def assert_same(data: bytes) -> None:
    expected, found = the_long_way(data), decoded(data)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert np.array_equal(expected, found)


@given(SIDES, SIDES)
def test_what_pack_writes_is_read_back(height: int, width: int) -> None:
    image = picture(height, width)
    data = encode(image, "png")
    assert np.array_equal(decode(data, "png"), image)
    assert_same(data)


@given(SIDES, SIDES, st.data())
def test_damage_is_noticed_as_before(height: int, width: int, choose: st.DataObject) -> None:
    data = bytearray(encode(picture(height, width), "png"))
    place = choose.draw(st.integers(0, len(data) - 1))
    data[place] ^= 1 << choose.draw(st.integers(0, 7))
    end = choose.draw(st.sampled_from([len(data), len(data) - 1, len(data) // 2, place]))
    assert_same(bytes(data[:end]))


def saved(image: Image.Image, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", **options)
    return data.getvalue()


def upside_down() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif


def late_exif(data: bytes) -> bytes:
    """Move the EXIF chunk behind the pixels, where the format allows it too."""
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    return data[:start] + data[end:-12] + data[start:end] + data[-12:]


TEXT = PngImagePlugin.PngInfo()
TEXT.add_text("author", "somebody")
RGB = Image.fromarray(picture(5, 7))


OTHERS = {
    "exif": saved(RGB, exif=upside_down()),
    "late exif": late_exif(saved(RGB, exif=upside_down())),
    "text": saved(RGB, pnginfo=TEXT),
    "one transparent colour": saved(RGB, transparency=tuple(picture(5, 7)[0, 0].tolist())),
    "alpha": saved(RGB.convert("RGBA")),
    "grey": saved(RGB.convert("L")),
    "palette": saved(RGB.convert("P")),
    "bits": saved(RGB.convert("1")),
    "animation": saved(RGB, save_all=True, append_images=[RGB.rotate(180)]),
    "too large": saved(Image.new("RGB", (MAX_SIDE + 1, 1))),
    "several chunks": encode(picture(300, 300), "png"),
    "empty": b"",
    "nothing but a signature": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_images_take_the_long_way(name: str) -> None:
    assert_same(OTHERS[name])


@given(SIDES, SIDES, st.data())
def test_an_array_is_read_as_numpy_reads_it(height: int, width: int, choose: st.DataObject) -> None:
    data = bytearray(encode(picture(height, width), "npy"))
    if choose.draw(st.booleans()):
        place = choose.draw(st.integers(0, len(data) - 1))
        data[place] ^= 1 << choose.draw(st.integers(0, 7))
    given_bytes = bytes(data[: choose.draw(st.sampled_from([len(data), len(data) - 1, len(data) // 2]))])
    try:
        expected = np.lib.format.read_array(io.BytesIO(given_bytes), allow_pickle=False)
    except Exception:
        with pytest.raises(Exception):  # noqa: B017
            decode(given_bytes, "npy")
        return
    found = decode(given_bytes, "npy")
    assert isinstance(expected, np.ndarray)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_the_transparent_colour_of_a_deep_png_is_that_of_its_pixels() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    red, green = (0xFF12, 0x0034, 0x0056), (0x0012, 0xFF34, 0x0056)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data += chunk(b"tRNS", struct.pack(">3H", *red))
    data += chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">6H", *red, *green))) + chunk(b"IEND", b"")
    image, changes = decode_rgb(data, ("PNG",))
    assert np.asarray(image).tolist() == [[[255, 255, 255], [0, 255, 0]]]
    assert changes == (REDUCED, COMPOSITED)
