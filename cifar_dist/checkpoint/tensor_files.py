"""Files of tensors: safetensors, which executes nothing. A file may be in parts, each with some of its tensors."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor

from cifar_dist.checkpoint.contents import CheckpointError
from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.outputs import write_output
from cifar_dist.files.reading import load_safetensors

_OS_ERROR: Final = re.compile(r"\b(?:code: |os error )(\d+)")  # as safetensors shows the number of an OSError


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        found = _OS_ERROR.search(str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(error), str(path)) from None


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """Read the tensors of one file from its parts, or from itself. They are read from the disk when they are used.

    Raises:
        CheckpointError: a part is not what it should be, or repeats a tensor of another.
        OSError: one of them cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            part = load_safetensors(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        if repeated := tensors.keys() & part.keys():
            raise CheckpointError(f"{path} repeats {min(repeated)}, which another part of it has")
        tensors |= part
    return tensors


def write_weights(weights: Mapping[str, Tensor], out: Path) -> None:
    """Write a safetensors file, complete or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_output(out, save(dict(weights)))


class WeightsCopy:
    """A copy in memory of a file of weights, of which several parts become one. The file may be deleted after.

    Args:
        files: the file, of safetensors or saved by torch, or its parts.

    Attributes:
        suffix: of the file.

    Raises:
        CheckpointError, OSError: as :func:`read_tensors`.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.suffix = files[0].suffix
        self._content = files[0].read_bytes() if len(files) == 1 else save(read_tensors(files))

    def write(self, out: Path) -> None:
        """Write the file, complete or not at all.

        Raises:
            OSError: it cannot be written.
        """
        write_atomic(out, self._content)
