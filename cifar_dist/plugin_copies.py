"""Keep copies of the plug-in files that a run uses in its folder, with their checksums.

:func:`cifar_dist.config.plugins.use_copies` reads them, and says when one is imported. A plug-in in an installed module
has no file to copy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from cifar_dist.config import Config, plugins
from cifar_dist.config.plugins import INDEX_NAME, PluginCopy, kept_copies
from cifar_dist.config.tree import to_tree
from cifar_dist.errors import UserError
from cifar_dist.files import sha256, write_atomic


def plugin_files(config: Config) -> list[Path]:
    """List the files that a config names as ``path/to/file.py:Attribute``, each once."""
    found = (plugins.file_of(text) for text in _texts(to_tree(config)))
    return list(dict.fromkeys(file for file in found if file is not None))


def substituted(config: Config) -> list[str]:
    """Return one line for each plug-in file of a config that is imported from a run's copy, or should be."""
    return plugins.notes_on(plugin_files(config))


def keep_copies(folder: Path, config: Config) -> list[str]:
    """Copy each plug-in file into ``folder``, unless that version of it exists there.

    Returns:
        One line for each file that has changed since the run last started, or is imported from a copy.

    Raises:
        UserError: a plug-in file cannot be read.
    """
    kept = kept_copies(folder)
    notes = []
    for file in plugin_files(config):
        try:
            place = plugins.located(file)
            content, checksum = place.read_bytes(), sha256(place)
        except OSError as error:
            raise UserError(f"the plug-in {file} cannot be read ({error.strerror})") from None
        before = next((copy for copy in reversed(kept) if copy.file == str(file)), None)
        if before is None or before.sha256 == checksum:  # else it is said below
            notes += plugins.notes_on([file])
        if before is not None and before.sha256 == checksum:
            continue
        folder.mkdir(exist_ok=True)
        copy = _free_name(file, {copy.copy for copy in kept})
        write_atomic(folder / copy, content)
        kept.append(PluginCopy(str(file), copy, checksum))
        write_atomic(folder / INDEX_NAME, json.dumps({"files": [asdict(copy) for copy in kept]}, indent=2) + "\n")
        if before is not None:
            notes.append(
                f"the plug-in {file} has changed since the last start of this run: diff "
                f"{folder / before.copy} {folder / copy}"
            )
    return notes


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


def _free_name(file: Path, taken: set[str]) -> str:
    """Return ``NAME.py``, or the first of ``NAME-2.py``, ``NAME-3.py``, ... that is free."""
    name, number = file.name, 1
    while name in taken or name == INDEX_NAME:
        number += 1
        name = f"{file.stem}-{number}{file.suffix}"
    return name
