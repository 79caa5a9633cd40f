"""One image, and the bytes that it is stored as."""

from __future__ import annotations

import io
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cifar_dist.errors import UserError

Codec = Literal["png", "npy", "jpg", "jpeg", "webp"]
"""How an image is stored, which is the suffix of its member: a format of Pillow, or a plain array of NumPy."""
Lossless = Literal["png", "npy"]
"""How pack stores an image."""
_FORMATS: Final[dict[Codec, str]] = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
"""Pillow's name of each of its formats that are read; no other decoder gets to see a byte."""

MAX_SIDE = 4096
"""Pixels. A larger image is no small image, and a header that claims one is not believed."""


def encode(image: NDArray[np.uint8], codec: Lossless) -> bytes:
    """An image, uint8 [height, width, channels], as the bytes of a member, without loss."""
    data = io.BytesIO()
    if codec == "npy":
        np.save(data, image, allow_pickle=False)
    else:
        Image.fromarray(image).save(data, format="PNG")
    return data.getvalue()


def decode(data: bytes, codec: Codec) -> NDArray[np.uint8]:
    """One member's bytes to uint8 [height, width, 3], RGB; what was stored as an array is given as it is, unchecked.

    Raises:
        Exception: not such an image. The libraries promise no narrower type.
    """
    if codec == "npy":
        array: NDArray[np.uint8] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        return array
    return np.asarray(decode_rgb(data, (_FORMATS[codec],)))


def decode_rgb(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """An encoded image, decoded and in RGB.

    Raises:
        UserError: more than ``MAX_SIDE`` pixels a side, or 8 bits a channel; goes on where a name ends, "is 9000x...".
        Exception: not such an image. Pillow promises no narrower type.
    """
    with Image.open(io.BytesIO(data), formats=formats) as image:
        if max(image.size) > MAX_SIDE:
            raise UserError(f"is {image.width}x{image.height} pixels; more than {MAX_SIDE} a side")
        if image.mode.startswith(("I", "F")):
            raise UserError("has more than 8 bits a channel; convert it to 8 bits")
        return image.convert("RGB")


def resize(image: Image.Image, size: int) -> Image.Image:
    """``size`` x ``size``: the central square, bicubic. Stretching would teach shapes that nothing has."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
