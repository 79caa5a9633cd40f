"""Keep copies of the plug-in files that a run uses in its folder, with their checksums.

:mod:`cifar_dist.config.plugin_copies` reads them.
"""

from __future__ import annotations

import os
from pathlib import Path

from cifar_dist.config import Config, plugins
from cifar_dist.config.changes import may_change
from cifar_dist.config.plugin_copies import INDEX_NAME, PluginCopy, index_of, kept_copies, located, notes_on
from cifar_dist.config.section import expand_existing
from cifar_dist.config.settings import settings_of
from cifar_dist.errors import UserError
from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.checksums import sha256


def keep_copies(folder: Path, config: Config) -> list[str]:
    """Copy each plug-in file into ``folder``, unless that version of it exists there.

    Returns:
        One line for each file that has changed since the run last started, or is imported from a copy.

    Raises:
        UserError: a plug-in file cannot be read.
    """
    kept = kept_copies(folder)
    notes = []
    for file in plugins.files_of(config):
        try:
            place = located(file)
            content, checksum = place.read_bytes(), sha256(place)
        except OSError as error:
            raise UserError(f"the plug-in {file} cannot be read ({error.strerror})") from None
        before = next((copy for copy in reversed(kept) if expand_existing(copy.file) == expand_existing(file)), None)
        if before is None or before.sha256 == checksum:  # else it is said below
            notes += notes_on([file])
        if before is not None and before.sha256 == checksum:
            continue
        folder.mkdir(exist_ok=True)
        copy = _free_name(file, {copy.copy for copy in kept})
        write_atomic(folder / copy, content)
        kept.append(PluginCopy(str(file), copy, checksum))
        write_atomic(folder / INDEX_NAME, index_of(kept))
        if before is not None:
            notes.append(
                f"the plug-in {file} has changed since the last start of this run: diff "
                f"{folder / before.copy} {folder / copy}"
            )
    return notes


def versions_used(folder: Path, config: Config) -> dict[Path, str]:
    """Return the sha256 of each plug-in file as the run last used it, of those that results depend on.

    Args:
        folder: the run's ``plugins``; what it does not have is unknown.
        config: the run's.
    """
    kept = {_plain(copy.file): copy.sha256 for copy in kept_copies(folder)}
    decisive = {key: value for key, value in settings_of(config).items() if not may_change(key)}
    files = [_plain(file) for file in plugins.files_in(decisive)]
    return {file: kept[file] for file in files if file in kept}


def _plain(file: str | Path) -> Path:
    """Return the path of a file, the same for each way to write it."""
    return Path(os.path.normpath(expand_existing(file)))


def _free_name(file: Path, taken: set[str]) -> str:
    """Return ``NAME.py``, or the first of ``NAME-2.py``, ``NAME-3.py``, ... that is free."""
    name, number = file.name, 1
    while name in taken or name == INDEX_NAME:
        number += 1
        name = f"{file.stem}-{number}{file.suffix}"
    return name
