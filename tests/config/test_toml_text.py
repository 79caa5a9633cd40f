"""TOML files: each reader says in the same line why one cannot be read."""

from __future__ import annotations

import encodings.utf_8_sig  # noqa: F401 - before the rights are dropped
from collections.abc import Callable
from pathlib import Path

import pytest
from support.without_rights import public_folder, without_rights

from cifar_dist import recipe
from cifar_dist.config.saved import read_config
from cifar_dist.data.dataset_file import DatasetFile
from cifar_dist.errors import UserError
from cifar_dist.sweeps import sweep_file

READERS: dict[str, Callable[[Path], object]] = {
    "recipe": lambda path: recipe.load(str(path)),
    "sweep": lambda path: sweep_file.load(str(path)),
    "config of a run": read_config,
    "dataset": DatasetFile.load,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[train]".encode("utf-16"), "is not a UTF-8 text; save it again as UTF-8"),
        (b"[train\n", "cannot be read as TOML: Expected "),
        (None, "cannot be read: Permission denied"),
    ],
    ids=["UTF-16", "TOML", "permission"],
)
def test_a_file_that_cannot_be_read_is_one_line(reader: str, content: bytes | None, says: str) -> None:
    assert recipe.shipped()  # listed before the rights are dropped
    with public_folder() as folder:
        path = folder / "mine.toml"
        path.write_bytes(content or b"")
        if content is None:
            path.chmod(0)
        with without_rights(), pytest.raises(UserError) as error:
            READERS[reader](path)
    assert str(error.value).startswith(f"{path} {says}")


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_is_no_toml_file(reader: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").mkdir()
    with pytest.raises(UserError, match=r"cannot be read: Is a directory$|recipe file .* is a folder$"):
        READERS[reader](tmp_path / "mine.toml")
