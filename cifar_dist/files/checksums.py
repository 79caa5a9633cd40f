"""The checksums of files, alone and as the list of a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.folders import exists, list_complete

_SUMS: Final = "SHA256SUMS"


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS``, the checksums of the files in ``folder``, atomically, as the program sha256sum reads it."""
    lines = [
        f"{sha256(path)}  {path.name}\n" for path in list_complete(folder) if path.is_file() and path.name != _SUMS
    ]
    write_atomic(folder / _SUMS, "".join(lines))


def changed_files(folder: Path) -> list[str]:
    """List the files of a ``SHA256SUMS`` that are missing or have changed; none if the folder has no such list."""
    if not exists(folder / _SUMS):
        return []
    saved = [line.split("  ", 1) for line in (folder / _SUMS).read_text(errors="replace").splitlines()]
    if not saved or any(len(pair) != 2 or "/" in pair[1] for pair in saved):
        return [_SUMS]
    return [name for checksum, name in saved if not (folder / name).is_file() or sha256(folder / name) != checksum]
