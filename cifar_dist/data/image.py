"""Encode, decode and resize one image."""

from __future__ import annotations

import io
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cifar_dist.errors import UserError

Codec = Literal["png", "npy", "jpg", "jpeg", "webp"]
"""How an image is stored, and the suffix of its member: a Pillow format, or ``npy`` for a plain NumPy array."""
Lossless = Literal["png", "npy"]
"""The codecs that ``pack`` writes."""
_FORMATS: Final[dict[Codec, str]] = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
"""Pillow's name of each accepted format; no other decoder is ever tried on the data."""

MAX_SIDE = 4096
"""Largest side of an image in pixels; a header that claims more is refused before anything is decoded."""


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
        Exception: the bytes are not such an image. The libraries promise no narrower type.
    """
    if codec == "npy":
        array: NDArray[np.uint8] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        return array
    return np.asarray(decode_rgb(data, (_FORMATS[codec],)))


def decode_rgb(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Decode an image of one of Pillow's ``formats`` and convert it to RGB.

    Raises:
        UserError: more than ``MAX_SIDE`` pixels a side or 8 bits per channel; the message continues the caller's
            prefix ("is 9000x...").
        Exception: the bytes are not such an image. Pillow promises no narrower type.
    """
    with Image.open(io.BytesIO(data), formats=formats) as image:
        if max(image.size) > MAX_SIDE:
            raise UserError(f"is {image.width}x{image.height} pixels; shrink it to at most {MAX_SIDE} a side")
        if image.mode.startswith(("I", "F")):
            raise UserError("has more than 8 bits per channel; convert it to 8 bits")
        return image.convert("RGB")


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resize the central square to ``size`` x ``size``, bicubic; stretching instead would distort shapes."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
