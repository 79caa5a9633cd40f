"""Encode, decode and resize one image."""

from __future__ import annotations

import functools
import io
import math
import struct
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from cifar_dist.data.image_files import MAX_SIDE
from cifar_dist.errors import UserError

Codec = Literal["png", "npy", "jpg", "jpeg", "webp"]
"""How an image is stored, and the suffix of its member: a Pillow format, or ``npy`` for a plain NumPy array."""
Lossless = Literal["png", "npy"]
"""The codecs that ``pack`` writes."""
CODECS: Final[tuple[Codec, ...]] = get_args(Codec)

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Pillow's names of the accepted formats; no other decoder is ever tried on the data."""
_MEMBER_FORMATS: Final = ("PNG", "JPEG", "WEBP")

MAX_SOURCE_PIXELS = 89_000_000
"""Largest image that is decoded in order to be resized; Pillow warns of a decompression bomb above 89 megapixels."""

BACKGROUND: Final = (255, 255, 255)
"""The colour behind transparent pixels: white, which image viewers show."""

_EXIF_ORIENTATION: Final = 0x0112
_EXIF_KEYS: Final = ("exif", "Raw profile type exif")
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_DEPTH_OFFSET: Final = 24  # signature, length and name of IHDR, width, height
_PNG_START: Final = struct.Struct(">8s 4x4s IIBB 3x4x I4s")  # to the name of the second chunk, without check sums
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_RGB: Final = 2
_NPY_VERSION_1: Final = b"\x93NUMPY\x01\x00"
_NPY_START: Final = len(_NPY_VERSION_1) + 2  # and the length of the header

TURNED: Final = "turned upright, as the EXIF orientation says"
COMPOSITED: Final = "composited over white, because of transparent pixels"
FIRST_FRAME: Final = "reduced to the first frame of an animation"
FROM_CMYK: Final = "converted from CMYK to RGB without a colour profile"
REDUCED: Final = "reduced from 16 to 8 bits per channel"


# Pillow warns of images that it decodes as a viewer does: of damaged EXIF data, or of an animation without frames. The
# warning names a line of Pillow and no image. The filter is set once, because images are decoded in threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class DecodedImage(NamedTuple):
    """An image as a viewer shows it.

    Attributes:
        image: in RGB.
        changes: what was done to the stored pixels, a participle each.
    """

    image: Image.Image
    changes: tuple[str, ...]


def encode(image: NDArray[np.uint8], codec: Lossless) -> bytes:
    """Encode an image, uint8 [height, width, channels], losslessly as the bytes of a member."""
    data = io.BytesIO()
    if codec == "npy":
        np.save(data, image, allow_pickle=False)
    else:
        Image.fromarray(image).save(data, format="PNG")
    return data.getvalue()


def decode(data: bytes, codec: Codec) -> NDArray[np.uint8]:
    """Decode the bytes of a member to RGB, uint8 [height, width, 3]; an ``npy`` array is returned without checks.

    Raises:
        Exception: as for :func:`decode_with_changes`.
    """
    return decode_with_changes(data, codec)[0]


def decode_with_changes(data: bytes, codec: Codec) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Decode the bytes of a member like :func:`decode`, and return the changes of :class:`DecodedImage` too.

    The content decides between PNG, JPEG and WebP, as in webdataset's own decoders: the suffix may be wrong.

    Raises:
        Exception: the bytes are not such an image. The libraries promise no narrower type; describe it with
            :func:`decoding_problem`.
    """
    if codec == "npy":
        return _decode_npy(data), ()
    if _is_plain_png(data):
        return np.asarray(PngImageFile(io.BytesIO(data))), ()
    image, changes = decode_rgb(data, _MEMBER_FORMATS)
    return np.asarray(image), changes


def decode_rgb(data: bytes, formats: Sequence[str], *, to_be_resized: bool = False) -> DecodedImage:
    """Decode an image of one of Pillow's ``formats`` to RGB, as a viewer shows it.

    The EXIF orientation is applied, transparent pixels are composited over ``BACKGROUND``, and an animation gives its
    first frame. Embedded colour profiles are ignored.

    Args:
        data: the bytes of the file.
        formats: accepted formats.
        to_be_resized: accept up to ``MAX_SOURCE_PIXELS`` pixels instead of ``MAX_SIDE`` a side.

    Raises:
        UserError: the image is larger, or grey with more than 8 bits; the message continues the caller's prefix
            ("is 9000x...").
        Exception: the bytes are not such an image. Pillow promises no narrower type.
    """
    with Image.open(io.BytesIO(data), formats=list(formats)) as image:
        _require_size(image, to_be_resized=to_be_resized)
        if image.mode.startswith(("I", "F")):
            raise UserError("has more than 8 bits per channel; convert it to 8 bits")
        changes = []
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a JPEG with a preview or a second view
            changes.append(FIRST_FRAME)
        if image.mode == "CMYK":
            changes.append(FROM_CMYK)
        if image.format == "PNG":
            _scale_transparent_value(image, depth := data[_PNG_DEPTH_OFFSET])
            changes += [REDUCED] if depth == 16 else []
        rgb = _flatten(image)
        if rgb is None:
            rgb = image.convert("RGB")
        else:
            changes.append(COMPOSITED)
        turn = _UPRIGHT.get(_exif_orientation(image))
        if turn is not None:
            rgb = rgb.transpose(turn)
            changes.append(TURNED)
        return DecodedImage(rgb, tuple(changes))


def _decode_npy(data: bytes) -> NDArray[np.uint8]:
    """Decode an array without pickles; one as :func:`encode` writes it in a tenth of NumPy's time.

    NumPy parses the header of each as Python. In a dataset all are the same bytes, so a parsed one is kept.
    """
    end = _NPY_START + int.from_bytes(data[_NPY_START - 2 : _NPY_START], "little")
    shape = _plain_shape(data[:end]) if data.startswith(_NPY_VERSION_1) else None
    if shape is None:
        array: NDArray[np.uint8] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        return array
    return np.frombuffer(data, np.uint8, math.prod(shape), end).reshape(shape)


@functools.lru_cache(maxsize=8)
def _plain_shape(header: bytes) -> tuple[int, ...] | None:
    """The shape of a contiguous uint8 array with this header, from its first byte; None for any other array."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    return None if is_fortran or dtype != np.uint8 or math.prod(shape) == 0 else shape


def _is_plain_png(data: bytes) -> bool:
    """Whether a PNG is as :func:`encode` writes it: 8-bit RGB in one chunk, without others that change how it looks.

    Such an image needs no search for transparency or EXIF data, so it is decoded a third faster.
    """
    if len(data) < _PNG_START.size:
        return False
    signature, first, width, height, depth, colour, size, second = _PNG_START.unpack_from(data)
    end = _PNG_START.size + size + 4
    return (
        (signature, first, depth, colour, second) == (_PNG_SIGNATURE, b"IHDR", 8, _RGB, b"IDAT")
        and max(width, height) <= MAX_SIDE
        and data[end + 4 : end + 8] == b"IEND"
    )


def resized_to(size: int) -> str:
    """Name the change of an image that did not have ``size`` x ``size`` pixels."""
    return f"resized to {size}x{size} pixels"


def note_changes(changes: Counter[str], total: int) -> list[str]:
    """Format how many of ``total`` images each change concerned, one line each."""
    return [f"{what}: {count:,} of {total:,} images" for what, count in sorted(changes.items())]


def decoding_problem(error: Exception) -> str:
    """Describe the exception of a decoder in a few printable words."""
    if isinstance(error, UnidentifiedImageError):  # its message shows the address of a Python object
        return "unknown format"
    return str(error)[:100] or type(error).__name__


def _require_size(image: Image.Image, *, to_be_resized: bool) -> None:
    shown = f"is {image.width}x{image.height} pixels"
    if to_be_resized:
        if image.width * image.height > MAX_SOURCE_PIXELS:
            raise UserError(f"{shown}; shrink it to at most {MAX_SOURCE_PIXELS:,} pixels")
    elif max(image.size) > MAX_SIDE:
        raise UserError(f"{shown}; shrink it to at most {MAX_SIDE} a side, or pack with --size N, which shrinks all")


def _flatten(image: Image.Image) -> Image.Image | None:
    """Composite an image over ``BACKGROUND``; return None if it has no transparent pixel."""
    if not image.has_transparency_data:
        return None
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return None
    flat = Image.new("RGB", rgba.size, BACKGROUND)
    flat.paste(rgba, mask=alpha)
    return flat


def _scale_transparent_value(image: Image.Image, depth: int) -> None:
    """Scale the transparent value of a PNG of 2, 4 or 16 bits to 8, as Pillow scales the pixels and not the value."""
    key = image.info.get("transparency")
    if depth == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.mode == "L" and depth in (2, 4) and isinstance(key, int) and key < 1 << depth:
        image.info["transparency"] = key * 255 // ((1 << depth) - 1)


def _exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1, which is upright, if there is none or the EXIF data is damaged."""
    if image.info.keys().isdisjoint(_EXIF_KEYS):
        return 1
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # viewers show an image whose EXIF data is damaged; parsing it may raise almost anything
        return 1


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resize the central square to ``size`` x ``size``, bicubic; stretching instead would distort shapes."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
