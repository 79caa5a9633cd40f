"""WebDataset tars as other tools write them, and the refusal of a folder of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from webdataset import TarWriter

from cifar_dist.data.index import index
from cifar_dist.errors import UserError
from support import dataset_builders as build

FORMS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}


def sample(key: str, label: int | None = 0, seed: int = 0, side: int = 8, codec: str = "png") -> dict[str, bytes | str]:
    image = build.random_images(1, seed, side)[0]
    if codec == "npy":
        data = io.BytesIO()
        np.save(data, image)
        member = data.getvalue()
    else:
        member = build.image_file(image, FORMS[codec])
    return {"__key__": key, codec: member, **({} if label is None else {"cls": str(label).encode()})}


def write(path: Path, samples: Sequence[Mapping[str, bytes | str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, TarWriter(file, encoder=False) as tar:
        for entry in samples:
            tar.write(dict(entry))
    return path


def raw(path: Path, members: Sequence[tuple[str, bytes]], **info: bytes | str) -> Path:
    """Write a tar of the given members; ``info`` sets header attributes of the last one."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            if (name, data) == members[-1]:
                for key, value in info.items():
                    setattr(header, key, value)
            tar.addfile(header, io.BytesIO(data))
    return path


def refusal(folder: Path, **how: Sequence[str]) -> str:
    before = build.read_folder(folder) if folder.is_dir() else None
    with pytest.raises(UserError) as error:
        index(folder, show=False, **how)
    assert (build.read_folder(folder) if folder.is_dir() else None) == before  # nothing written
    assert "\n" not in str(error.value)
    return str(error.value)


def notes(folder: Path, capsys: pytest.CaptureFixture[str], classes: Sequence[str] = ()) -> list[str]:
    index(folder, classes=classes)
    return [line.removeprefix("note: ") for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
