"""Convert arrays, as other programs store them, to images and integers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_dist.data.image import resize
from cifar_dist.data.image_files import MAX_SIDE
from cifar_dist.data.memory import require_memory_for_images
from cifar_dist.errors import UserError
from cifar_dist.formatting import list_some
from cifar_dist.launch.launched import local_processes


def resize_images(
    images: NDArray[np.uint8],
    size: int,
    where: str = "the source",
    remedy: str = "use a smaller size, or fewer images",
    *,
    copies: int = 1,
) -> NDArray[np.uint8]:
    """Resize images, uint8 [samples, height, width, 3], to ``size`` x ``size``.

    ``where``, ``remedy`` and ``copies`` are as for :func:`require_memory_for_images`.
    """
    if images.shape[1:3] == (size, size):
        return images
    require_memory_for_images(where, len(images), (size, size, 3), remedy, copies=copies)
    resized = np.empty((len(images), size, size, 3), np.uint8)
    for row, image in enumerate(images):
        resized[row] = np.asarray(resize(Image.fromarray(image), size))
    return resized


def planes_note(arrays: Sequence[str]) -> str:
    """Say how the flat rows of arrays are read, which :func:`as_images` cannot tell from rows of pixels."""
    return (
        f"read the rows of {list_some(arrays)} as the red, the green and the blue plane of an image, as in CIFAR's "
        "files; for rows of pixels store images.reshape(-1, height, width, 3)"
    )


def as_images(value: object, where: str) -> NDArray[np.uint8]:
    """Convert images to uint8 [samples, height, width, 3].

    Args:
        value: a uint8 array: [samples, height, width, 3 or 1], [samples, height, width], or the layout of the CIFAR
            files, [samples, 3 * side * side] with the red, green and blue planes in row-major order.
        where: prefix of error messages.

    Raises:
        UserError: ``value`` is anything else, has no samples, or does not fit in the memory of each process of this
            machine beside the file: grey images take three times their size.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        what, way = type(value).__name__, ""
        if isinstance(value, np.ndarray):
            what = str(value.dtype)
            scale = ", or for values from 0 to 1 (255 * images).round().astype('uint8')" if "float" in what else ""
            way = f", as in images.astype('uint8') for values from 0 to 255{scale}"
        elif isinstance(value, list | tuple):
            way = ", as in np.stack(images)"
        raise UserError(f"{where} is {what}; store images as an array of uint8{way}")
    side = math.isqrt(value.shape[1] // 3) if value.ndim == 2 else 0
    match value.shape:
        case (_, pixels) if side and pixels == 3 * side * side:
            value = value.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
        case (_, _, _) if not _conversion(value.shape):
            value = np.broadcast_to(value[..., None], (*value.shape, 3))
        case (_, _, _, 1):
            value = np.broadcast_to(value, (*value.shape[:3], 3))
        case (_, _, _, 3):
            pass
        case _:
            way = _conversion(value.shape)
            raise UserError(
                f"{where} has shape {value.shape}; expected [N, height, width, 3] or [N, 3 * side * side]"
                f"{': ' * bool(way)}{way}"
            )
    if 0 in value.shape or max(value.shape[1:3]) > MAX_SIDE:
        raise UserError(
            f"{where} has shape {value.shape}; expected at least one image, with 1 to {MAX_SIDE} pixels a side"
        )
    if not (value.flags.c_contiguous and value.flags.writeable):  # torch requires writable memory
        remedy = "store fewer or smaller images"
        require_memory_for_images(where, len(value), value.shape[1:], remedy, copies=local_processes())
    return np.require(value, requirements=["C", "W"])


def _conversion(shape: tuple[int, ...]) -> str:
    """Return the expression that converts images of a shape that other programs write; empty if none does."""
    match shape:
        case (_, pixels) if side := _side(pixels):
            return f"images.reshape(-1, {side}, {side})"
        case (_, 1 | 3 as planes, pixels) if side := _side(pixels):
            return f"images.reshape(-1, {planes}, {side}, {side}).transpose(0, 2, 3, 1)"
        case (_, pixels, 1 | 3 as channels) if side := _side(pixels):
            return f"images.reshape(-1, {side}, {side}, {channels})"
        case (_, 1 | 3, _, _):
            return "images.transpose(0, 2, 3, 1)"
        case (_, _, 1 | 3, _):
            return "images.transpose(3, 0, 1, 2)"
        case (_, _, _, 4):
            return "images[..., :3], without the transparency"
    return ""


def _side(pixels: int) -> int:
    """Return the side of a square of so many pixels; 0 if it is none, or too small for an image."""
    side = math.isqrt(pixels)
    return side if side * side == pixels and side > 3 else 0


def as_integers(value: object, count: int, where: str) -> NDArray[np.int64]:
    """Convert a list or an array ([count] or [count, 1]) of integers to int64 [count].

    Raises:
        UserError: ``value`` is anything else; the message begins with ``where``.
    """
    if isinstance(value, list) and all(type(item) is int and abs(item) < 2**63 for item in value):
        value = np.array(value, dtype=np.int64)
    if isinstance(value, list) and any(isinstance(item, str | bytes) for item in value):
        raise text_error(where)
    one_hot = ""
    if isinstance(value, np.ndarray) and value.ndim == 2 and len(value) == count and value.shape[1] > 1:
        one_hot = " (argmax(1) of one-hot labels)"
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        cast = one_hot or (" (astype(int))" if isinstance(value, np.ndarray) and value.dtype.kind in "fb" else "")
        raise UserError(f"{where} is not a list of integers; store one integer per image{cast}")
    if value.shape not in ((count,), (count, 1)):
        raise UserError(f"{where} has shape {value.shape} for {count} images; store one integer per image{one_hot}")
    require_int64(value, where)
    return value.reshape(-1).astype(np.int64)


def require_int64(values: NDArray[np.integer], where: str) -> None:
    """Refuse unsigned integers that int64 does not have; the message begins with ``where``."""
    if values.dtype == np.uint64 and values.max(initial=0) >= 2**63:
        raise UserError(f"{where} contains {values.max()}; use integers below 2**63")


def text_error(where: str) -> UserError:
    """Return the error of labels or ids that are text."""
    remedy = "for labels: classes, y = np.unique(names, return_inverse=True)"
    if where.removesuffix(".npy").endswith("ids"):
        remedy = "or predict a folder of image files, whose names are then the ids"
    return UserError(f"{where} holds text; store numbers, {remedy}")
