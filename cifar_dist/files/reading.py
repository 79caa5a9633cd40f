"""Files that others may have written: JSON that may be damaged, tensors, names that are no text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_dist.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def is_utf8(name: str) -> bool:
    """Whether the name of a file is UTF-8. Python accepts any bytes as a name, but no text file can hold this one."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_utf8_locale(name: str, what: str) -> None:
    """Refuse the name of a file that has other letters than ASCII, unless names are UTF-8 for Python.

    It reads them as the locale says, where each byte of a letter may be a letter of its own.

    Args:
        name: as Python has it.
        what: for the message.

    Raises:
        UserError: with how to read names as UTF-8.
    """
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not name.isascii():
        raise UserError(f"{what} is read as {encoding}, by the locale; to read names as UTF-8: export PYTHONUTF8=1")


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Load a file of safetensors, whose library takes no path that is not UTF-8.

    Raises:
        SafetensorError: the file is damaged or not of this format.
        OSError: it cannot be read.
    """
    from safetensors.torch import load, load_file

    tensors: dict[str, Tensor] = load_file(path) if is_utf8(str(path)) else load(path.read_bytes())
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty where it is missing or damaged: a table shows what exists."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
