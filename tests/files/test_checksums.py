"""A checksum is of all bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cifar_dist.files.checksums import sha256


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_checksum_is_of_all_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
