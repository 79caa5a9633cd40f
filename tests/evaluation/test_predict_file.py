"""What ``predict`` reads of folders, archives and arrays, what it says of them, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import dataset_builders as build

from cifar_dist.errors import UserError
from cifar_dist.evaluation.predict_file import read_images


def images(count: int = 2, side: int = 6) -> dict[str, bytes]:
    """Return the files ``0.png``, ``1.png`` and so on."""
    return {f"{n}.png": build.image_file(image) for n, image in enumerate(build.random_images(count, side=side))}


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    build.write_folder(tmp_path, images())
    (tmp_path / "0.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(UserError, match=r"not UTF-8 cannot be IDs: 'caf\\udce9.png'; rename the files$"):
        read_images(tmp_path, None)
