"""What a user asked for in a file, which may be a device or a pipe."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from cifar_dist.files.atomic import naming, write_atomic
from cifar_dist.files.open_files import find_descriptor


def write_output(path: Path, content: str | bytes) -> None:
    """Write what a user wants in ``path`` (text as UTF-8): a file atomically, through a link; a device or a pipe as is.

    ``/dev/stdout`` is this process's output wherever that leads: replacing the file behind it would lose what others
    have written there, such as the log of a job. Its reader may end before it has read all, as ``head`` does.
    """
    data = content.encode() if isinstance(content, str) else content
    descriptor = find_descriptor(path)
    if descriptor is not None:
        sys.stdout.flush()
        may_end = [BrokenPipeError] if descriptor == 1 else []
        with naming(path), contextlib.suppress(*may_end), open(descriptor, "wb", closefd=False) as file:
            file.write(data)
    elif path.exists() and not path.is_file() and not path.is_dir():
        with naming(path):
            path.write_bytes(data)
    else:
        write_atomic(path.resolve(), data)
