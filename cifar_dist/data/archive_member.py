"""A file in a folder or an archive, and what makes one unacceptable: its name, its size, its expansion."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.data.memory import free_memory
from cifar_dist.errors import UserError
from cifar_dist.launch.launched import local_processes

MAX_MEMBER = 1 << 30
"""Largest size of one member in bytes; the largest in practice, CIFAR-100's ``train``, has 156 MB."""
MAX_ARRAY = 64 << 30
"""Largest size of one array of an npz in bytes; free memory is a limit too."""
MAX_RATIO = 100
"""Largest expansion of an archive when it is decompressed; images and CIFAR batches stay below 10."""
BASE_ALLOWANCE = 64 << 20  # bytes beyond MAX_RATIO: small archives of uniform test images compress very well

_OF_SYSTEM = ("icon\r", "thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Member:
    """A regular file, or a folder, whose name ends in ``/``.

    Attributes:
        name: path parts separated by ``/``.
        read: returns the content; valid until the next member is requested.
        is_guessed: whether the name may be scrambled, because a zip does not name its encoding.
    """

    name: str
    read: Callable[[], bytes] = bytes
    is_guessed: bool = False


def is_of_system(name: str) -> bool:
    """Whether macOS or Windows wrote a file by itself."""
    parts = name.split("/")
    return parts[-1].lower() in _OF_SYSTEM or any(part.startswith(("._", "__MACOSX")) for part in parts)


def safe_name(path: Path, name: str) -> str:
    """Return ``name`` without ``./``; raise UserError if it leads out of the folder or is not printable."""
    parts = re.split(r"[/\\]", name)
    if not name or not all(map(_is_harmless, name.removesuffix("\r") if is_of_system(name) else name)):
        raise UserError(f"{path}: the member name {name!a} is not printable; rename it and create the archive again")
    if parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise UserError(
            f"{path}: the member name '{name}' leads out of the folder; create the archive again without it"
        )
    return "/".join(part for part in parts if part not in ("", "."))


def _is_harmless(character: str) -> bool:
    """Whether a character is text: printable, a space of any width, or what joins or separates letters and emoji."""
    return character.isprintable() or unicodedata.category(character) == "Zs" or character in "\u200c\u200d"


def require_size(path: Path, name: str, size: int) -> None:
    """Refuse a member larger than :data:`MAX_MEMBER`."""
    if not 0 <= size <= MAX_MEMBER:
        raise UserError(f"{path}: '{name}' has {size:,} bytes; the limit is {MAX_MEMBER:,}")


def limited(
    path: Path,
    name: str,
    size: int,
    read: Callable[[], bytes],
    require: Callable[[Path, str, int], None] = require_size,
) -> Callable[[], bytes]:
    """Return ``read`` of a member that ``require`` may refuse; one that is not read may have any size."""

    def read_if_accepted() -> bytes:
        require(path, name, size)
        return read()

    return read_if_accepted


def require_memory(path: Path, name: str, size: int) -> None:
    """Refuse an array that does not fit in memory twice: as a member, and as the images made from it.

    Each process of this machine reads it.
    """
    processes = local_processes()
    free = free_memory() // processes
    if not 0 <= size <= min(MAX_ARRAY, max(free // 2, MAX_MEMBER // processes)):
        of_each = " for each process" * (processes > 1)
        raise UserError(
            f"{path}: '{name}' has {size:,} bytes, and {free / 2**30:.1f} GiB of memory are free{of_each}; store "
            "smaller images, or a folder of image files, CLASS/FILE.png"
        )


def decompression_bomb(path: Path) -> UserError:
    """Describe an archive that expands beyond :data:`MAX_RATIO`."""
    return UserError(
        f"{path} expands to more than {MAX_RATIO} times its size; unpack it, check its content, and pack the folder"
    )
