"""Read the members of a zip, and their names, whose encoding a zip does not always say."""

from __future__ import annotations

import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cifar_dist.data.archive_member import (
    BASE_ALLOWANCE,
    MAX_RATIO,
    Member,
    decompression_bomb,
    limited,
    require_memory,
    require_size,
    safe_name,
)
from cifar_dist.data.source_suffixes import NPZ_SUFFIX
from cifar_dist.errors import UserError, quoted

_ENCRYPTED, _UTF8 = 1, 1 << 11  # bits of a zip member's flags
_ENCODINGS = "cp932 for Japanese, gbk for Chinese, cp949 for Korean, cp866 for Russian"  # of Windows


def walk_zip(path: Path) -> Iterator[Member]:
    """Yield the members of a zip or of an npz, which is a zip of arrays.

    Raises:
        UserError: it is encrypted, expands too far, or contains something no dataset needs.
        Exception: of zipfile and zlib, for one that is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        # zipfile never reads more of a member than its declared size, so the sum bounds the total.
        if sum(info.file_size for info in infos) > BASE_ALLOWANCE + MAX_RATIO * path.stat().st_size:
            raise decompression_bomb(path)
        for info in infos:
            stored = _zip_name(path, info)
            name = safe_name(path, stored)
            if stored.endswith(("/", "\\")):  # is_dir() knows no backslashes, which some programs on Windows write
                if name:
                    yield Member(name + "/")
                continue
            if info.flag_bits & _ENCRYPTED:
                raise UserError(f"{path} is encrypted; extract it with its password, and use the folder")
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise UserError(f"{path}: '{name}' is a link or a device; create the archive from regular files")
            require = require_memory if path.suffix.lower() == NPZ_SUFFIX else require_size
            read = limited(path, name, info.file_size, partial(archive.read, info), require)
            yield Member(name, read, is_guessed=_is_guessed(info))


def _is_guessed(info: zipfile.ZipInfo) -> bool:
    """Whether zipfile decoded a name as code page 437 for want of anything better."""
    if info.flag_bits & _UTF8 or info.filename.isascii():
        return False
    try:
        info.filename.encode("cp437").decode()
    except UnicodeError:
        return True
    return False  # macOS writes UTF-8 without the flag that says so


def _zip_name(path: Path, info: zipfile.ZipInfo) -> str:
    """Return the name of a zip member.

    Raises:
        UserError: it is in the encoding of another language, as Windows writes Chinese names, and would be scrambled.
    """
    name = info.filename
    if _is_guessed(info):
        # Code page 437 also has Greek letters, mathematical signs and box drawings, which are not in Western names. The
        # second byte of a Japanese letter may be a backslash.
        if "\\" in name or not all(map(_is_western, name)):
            raise UserError(
                f"{path}: the member name '{name}' is in an encoding that the archive does not name; "
                f"{way_to_unpack(path)}"
            )
        return name
    return name if info.flag_bits & _UTF8 else name.encode("cp437").decode()


def _is_western(letter: str) -> bool:
    return letter.isascii() or letter in "ªº¿¡" or unicodedata.name(letter).startswith("LATIN")


def way_to_unpack(path: Path) -> str:
    """Say how to read the names of a zip in their encoding."""
    unpack = f"python -m zipfile --metadata-encoding ENCODING -e {quoted(path)} FOLDER"
    return f"unpack it with its ENCODING, and use the folder: {unpack} ({_ENCODINGS})"
