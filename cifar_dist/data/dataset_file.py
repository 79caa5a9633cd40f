"""``shards/NAME.toml``: where a dataset comes from and how it is packed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError, model_validator

from cifar_dist.errors import UserError, nearest

Fraction = Annotated[float, Field(ge=0, lt=1)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}$")]


class DatasetFile(BaseModel, frozen=True, extra="forbid", strict=True):
    """The keys of a dataset file; every other key is refused."""

    name: FileName
    """Short name of the dataset."""
    embedded: Literal["digits"] | None = None
    """A dataset that comes with the libraries, instead of an archive."""
    archive: str | None = None
    """File or folder with the data, looked for beside this file and in the working folder."""
    url: str | None = None
    """http(s) address of the archive, fetched when there is no local copy."""
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    """MD5 that the archive must have; an address needs one."""
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Side in pixels that every image is resized to."""
    val_fraction: Fraction | None = None
    """Part of each training class that becomes the split val."""
    test_fraction: Fraction | None = None
    """Part of each training class that becomes the split test, where the source has none."""
    classes: Annotated[list[str], Field(min_length=1)] | None = None
    """Class names, in label order."""

    @model_validator(mode="after")
    def _one_source(self) -> DatasetFile:
        if (self.embedded is None) == (self.archive is None and self.url is None):
            raise ValueError('give either embedded = "digits", or archive = "FILE" (and a url)')
        if self.url is not None:
            if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
                raise ValueError(f"url {self.url!r} is not an http:// or https:// address")
            if self.md5 is None:
                raise ValueError("a url needs the md5 of what it gives")
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", self.archive_name):
                raise ValueError('archive must be a plain file name, for example archive = "cifar-10-python.tar.gz"')
        return self

    @property
    def archive_name(self) -> str:
        """The archive's path as given, or the last part of the address."""
        return self.archive or urlsplit(self.url or "").path.rsplit("/", 1)[-1]

    @classmethod
    def load(cls, path: Path) -> DatasetFile:
        """Read and check a dataset file.

        Raises:
            UserError: no such file, no valid TOML, an unknown key, or a value that is not valid.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            raise UserError(f"{path}: {_first(error)}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} is not valid TOML: {error}") from None


def find_dataset_file(source: str) -> Path | None:
    """The file that SOURCE names: a path ending in ``.toml``, or NAME for ``shards/NAME.toml``; else None.

    Names are looked for in the working folder, then in the checkout that this package lies in.
    """
    if source.lower().endswith(".toml"):
        return Path(source)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", source):
        return None
    candidates = [folder / f"{source}.toml" for folder in _folders()]
    return next((path for path in candidates if path.is_file()), None)


def known_names() -> list[str]:
    """Names of the dataset files that :func:`find_dataset_file` finds."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.toml")})


def _folders() -> tuple[Path, Path]:
    return Path("shards"), Path(__file__).parents[2] / "shards"


def _first(error: ValidationError) -> str:
    """The first complaint of pydantic as one line for the reader."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'; {nearest(key, DatasetFile.model_fields)}"
    if first["type"] == "missing":
        return f"the key '{key}' is missing"
    what = first["msg"].removeprefix("Value error, ")
    return f"{key} = {first['input']!r}: {what}" if key else what
