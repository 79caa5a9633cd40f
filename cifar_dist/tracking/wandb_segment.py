"""Read the messages in a segment, the ``.wandb`` file of one process: LevelDB's log format behind a header of W&B's.

https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MAGIC: Final = b":W&B"
_FIRST_OFFSET: Final = 7  # of a part of a message in the first block, behind the header of the file
_BLOCK: Final = 32768
_HEADER: Final = struct.Struct("<IHB")  # of each part: checksum, length, kind
_FULL, _FIRST, _LAST = 1, 2, 4  # kinds of parts


def read_messages(segment: Path) -> Iterator[bytes]:
    """Yield the messages of a segment, until one that was not written to its end.

    Raises:
        OSError: the file cannot be read.
        ValueError: W&B did not write it.
    """
    message = b""
    with segment.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{segment} is not a file of W&B")
        file.seek(0)
        offset = _FIRST_OFFSET
        while block := file.read(_BLOCK):
            while offset + _HEADER.size <= len(block):  # less room is padding
                _, length, kind = _HEADER.unpack_from(block, offset)
                begin, offset = offset + _HEADER.size, offset + _HEADER.size + length
                if not kind or offset > len(block):
                    return
                part = block[begin:offset]
                message = part if kind in (_FULL, _FIRST) else message + part
                if kind in (_FULL, _LAST):
                    yield message
            offset = 0
