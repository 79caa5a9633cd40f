"""``shards/NAME.toml``: describes where a dataset comes from and how to pack it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from cifar_dist.config.section import expand_path
from cifar_dist.config.toml_text import read_toml
from cifar_dist.data.image_files import MAX_SIDE
from cifar_dist.data.source_suffixes import FILE_ENDINGS, FILE_SUFFIXES
from cifar_dist.errors import UserError, nearest
from cifar_dist.files.checkout import repository

Fraction = Annotated[float, Field(ge=0, lt=1)]
_CHARACTERS = "[A-Za-z0-9_][A-Za-z0-9_.+-]"
"""The first character of a name, and each of the others."""
_SPELLING = {
    "name": "use at most 128 letters, digits, '_', '-', '.' and '+', beginning with a letter, a digit or '_'",
    "md5": "use the 32 digits 0 to 9 and a to f that md5sum prints",
}
"""What the keys with a pattern take."""
FileName = Annotated[str, Field(pattern=rf"^{_CHARACTERS}{{0,127}}$")]


class DatasetFile(BaseModel, frozen=True, extra="forbid", strict=True):
    """The keys of a dataset file; any other key is refused."""

    name: FileName
    """Short name of the dataset."""
    embedded: Literal["digits"] | None = None
    """A dataset bundled with an installed library, instead of an archive."""
    archive: Annotated[str, Field(min_length=1), AfterValidator(expand_path)] | None = None
    """File or folder with the data, searched for beside this file and then in the working directory; ``~`` and
    environment variables are replaced."""
    url: str | None = None
    """http(s) URL of the archive, downloaded if there is no local copy."""
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    """MD5 of the archive; required with a URL."""
    size: Annotated[int, Field(ge=1, le=MAX_SIDE)] | None = None
    """Resize every image to this many pixels a side."""
    val_fraction: Fraction | None = None
    """Fraction of each training class to hold out as the split val."""
    test_fraction: Fraction | None = None
    """Fraction of each training class to hold out as the split test, if the source has no test split."""
    classes: Annotated[list[str], Field(min_length=1)] | None = None
    """Class names, in label order."""

    @model_validator(mode="after")
    def _require_one_source(self) -> DatasetFile:
        if (self.embedded is None) == (self.archive is None and self.url is None):
            raise ValueError('set either embedded = "digits", or archive = "FILE" (optionally with a url)')
        if self.url is not None:
            if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
                raise ValueError(f"url {self.url!r} is not an http:// or https:// URL")
            if self.md5 is None:
                raise ValueError("url requires md5, the checksum of the archive")
            if not re.fullmatch(f"{_CHARACTERS}*", self.archive_name):
                raise ValueError('archive must be a plain file name, for example archive = "cifar-10-python.tar.gz"')
            if not self.archive_name.lower().endswith(FILE_SUFFIXES):
                raise ValueError(
                    f"the name '{self.archive_name}' does not say what the URL sends; add a name that ends in "
                    f'{FILE_ENDINGS}, for example archive = "NAME.zip"'
                )
        return self

    @property
    def archive_name(self) -> str:
        """``archive``, or the last path part of the URL."""
        return self.archive or urlsplit(self.url or "").path.rsplit("/", 1)[-1]

    @classmethod
    def load(cls, path: Path) -> DatasetFile:
        """Read and validate a dataset file.

        Raises:
            UserError: the file does not exist, is not valid TOML, or has an unknown key or an invalid value.
        """
        try:
            return cls.model_validate(read_toml(path))
        except FileNotFoundError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            raise UserError(f"{path}: {_first_error(error)}") from None


def find_dataset_file(source: str) -> Path | None:
    """Return the dataset file that SOURCE names: a path ending in ``.toml``, or NAME for ``shards/NAME.toml``.

    Names are searched for in the working directory, then in the repository. Returns None for anything else.
    """
    if source.lower().endswith(".toml"):
        return Path(source)
    if not re.fullmatch(f"{_CHARACTERS}*", source):
        return None
    candidates = [folder / f"{source}.toml" for folder in _search_folders()]
    return next((path for path in candidates if path.is_file()), None)


def known_names() -> list[str]:
    """List the names that :func:`find_dataset_file` resolves."""
    return sorted({path.stem for folder in _search_folders() for path in folder.glob("*.toml")})


def _search_folders() -> tuple[Path, Path]:
    return Path("shards"), repository() / "shards"


def _first_error(error: ValidationError) -> str:
    """Format pydantic's first error as one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'; {nearest(key, DatasetFile.model_fields)}"
    if first["type"] == "missing":
        return f"the key '{key}' is missing"
    if first["type"] == "string_pattern_mismatch":
        return f"{key} = {first['input']!r}: {_SPELLING[key]}"
    what = first["msg"].removeprefix("Value error, ")
    return f"{key} = {first['input']!r}: {what}" if key else what
