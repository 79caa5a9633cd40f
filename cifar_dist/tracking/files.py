"""Small files of a run folder are written whole or not at all, and what they say is safe to print."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` atomically: temp name, fsync, rename, fsync of the folder.

    A reader sees the old content or the new, never a part, whenever the process or the machine dies.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def printable(text: str) -> str:
    """``text`` with every control, escape or unpaired surrogate character (but the newline) written as an escape.

    A class or file name can hold anything; nothing of it may move the cursor of whoever reads the log.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
