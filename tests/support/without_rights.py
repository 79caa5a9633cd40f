"""A user without rights, also where the tests run as root."""

from __future__ import annotations

import encodings.utf_8_sig  # noqa: F401  # which recipes are read with, and is imported when it is first used
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def without_rights() -> Iterator[None]:
    """Run as a user who may not read what belongs to others; what is imported meanwhile must be imported before."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that all users may read; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
