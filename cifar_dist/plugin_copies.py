"""Keep copies of the plug-in files that a run uses in its folder, with their checksums.

A copy is imported only to resume the run where the file does not exist. A plug-in in an installed module has no file to
copy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cifar_dist.config import Config, plugins
from cifar_dist.config.tree import to_tree
from cifar_dist.errors import UserError
from cifar_dist.files import read_json, sha256, write_atomic

_INDEX = "plugins.json"


@dataclass(frozen=True)
class PluginCopy:
    """A version of a plug-in file.

    Attributes:
        file: its path, as in the config.
        copy: its name in the run's ``plugins``.
        sha256: checksum of both.
    """

    file: str
    copy: str
    sha256: str


def plugin_files(config: Config) -> list[Path]:
    """List the files that a config names as ``path/to/file.py:Attribute``, each once."""
    found = (plugins.file_of(text) for text in _texts(to_tree(config)))
    return list(dict.fromkeys(file for file in found if file is not None))


def keep_copies(folder: Path, config: Config) -> list[str]:
    """Copy each plug-in file into ``folder``, unless that version of it exists there.

    Returns:
        One line for each file that has changed since the run last started.

    Raises:
        UserError: a plug-in file cannot be read.
    """
    kept = _read_index(folder / _INDEX)
    notes = []
    for file in plugin_files(config):
        try:
            place = plugins.located(file)
            content, checksum = place.read_bytes(), sha256(place)
        except OSError as error:
            raise UserError(f"the plug-in {file} cannot be read ({error.strerror})") from None
        before = next((copy for copy in reversed(kept) if copy.file == str(file)), None)
        if before is not None and before.sha256 == checksum:
            continue
        folder.mkdir(exist_ok=True)
        copy = _free_name(file, {copy.copy for copy in kept})
        write_atomic(folder / copy, content)
        kept.append(PluginCopy(str(file), copy, checksum))
        write_atomic(folder / _INDEX, json.dumps({"files": [asdict(copy) for copy in kept]}, indent=2) + "\n")
        if before is not None:
            notes.append(
                f"the plug-in {file} has changed since the last start of this run: diff "
                f"{folder / before.copy} {folder / copy}"
            )
    return notes


def missing_files(folder: Path) -> dict[Path, Path]:
    """Return the newest copy in ``folder`` of each plug-in file that does not exist where the run found it."""
    copies = {Path(kept.file): folder / kept.copy for kept in _read_index(folder / _INDEX)}
    return {file: copy for file, copy in copies.items() if copy.is_file() and not file.is_file()}


def _texts(value: object) -> Iterator[str]:
    """Yield every string in a tree of tables and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _read_index(path: Path) -> list[PluginCopy]:
    """Read the list of copies, oldest first; empty if the index is missing or damaged."""
    try:
        return [
            PluginCopy(**{key: str(entry[key]) for key in ("file", "copy", "sha256")})
            for entry in read_json(path)["files"]
        ]
    except (KeyError, TypeError):
        return []


def _free_name(file: Path, taken: set[str]) -> str:
    """Return ``NAME.py``, or the first of ``NAME-2.py``, ``NAME-3.py``, ... that is free."""
    name, number = file.name, 1
    while name in taken or name == _INDEX:
        number += 1
        name = f"{file.stem}-{number}{file.suffix}"
    return name
