"""Image files, recognised by the suffix of their names, and how large an image may be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from cifar_dist.formatting import counted, it_or_them, list_some

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif")
"""Suffixes of the files that are packed; their content decides how they are decoded."""
_UNREAD_SUFFIXES = frozenset(
    """
    .apng .arw .avif .cr2 .cr3 .dds .dng .exr .hdr .heic .heif .hif .ico .icns .j2k .jp2 .jxl .jxr .mpo .nef .orf .pbm
    .pcx .pgm .pnm .ppm .psd .qoi .raf .raw .rw2 .svg .tga .tif .tiff .xbm .xpm
    """.split()
)
"""Suffixes of images in formats that are not read."""

MAX_SIDE = 4096
"""Largest side of an image in pixels; a header that claims more is refused before anything is decoded."""

SKIP_OPTION = "--skip-unusable"
"""The option of ``cifar-dist pack`` that skips what is not packed."""


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case."""
    return PurePosixPath(name).suffix.lower()


def is_image(name: str) -> bool:
    """Whether a file is named as an image that is read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def unreadable_images(files: Iterable[str]) -> list[str]:
    """List the files that are named as images in a format that is not read."""
    return [name for name in files if suffix_of(name) in _UNREAD_SUFFIXES]


def note_not_images(others: Sequence[str]) -> list[str]:
    """Note the files that are not read because they are not named as images; no line without any."""
    return [f"passed over {counted(len(others), 'file')} not named as an image: {list_some(others)}"] if others else []


def describe_unreadable(unreadable: Sequence[str]) -> tuple[str, str]:
    """Return what is wrong with :func:`unreadable_images`, and the remedy."""
    suffixes = ", ".join(sorted({suffix_of(name) for name in unreadable}))
    message = f"{counted(len(unreadable), 'image')} in a format that is not read, {suffixes}: {list_some(unreadable)}"
    return message, f"convert {it_or_them(unreadable)} to PNG"
