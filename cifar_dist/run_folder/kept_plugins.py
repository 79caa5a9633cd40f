"""Keep the versions of the plug-ins that a run uses in its folder: copies of files, and the checksums of packages.

:mod:`cifar_dist.config.plugin_copies` reads them.
"""

from __future__ import annotations

import os
from pathlib import Path

from cifar_dist.config import Config, plugins
from cifar_dist.config.changes import may_change
from cifar_dist.config.plugin_code import is_package, package_version
from cifar_dist.config.plugin_copies import (
    INDEX_NAME,
    PluginVersion,
    checksum_of,
    describe_change,
    index_of,
    kept_versions,
    located,
    newest_versions,
    notes_on,
)
from cifar_dist.config.section import expand_existing
from cifar_dist.config.settings import settings_of
from cifar_dist.errors import UserError
from cifar_dist.files.atomic import write_atomic


def keep_versions(folder: Path, config: Config) -> list[str]:
    """Copy each plug-in file into ``folder``, and record each package, unless it has that version.

    Returns:
        One line for each file or package that has changed since the run last started, or is imported from a copy.

    Raises:
        UserError: a plug-in file cannot be read.
    """
    kept, notes = kept_versions(folder), []
    for code in plugins.code_of(config):
        content = None if is_package(code) else _read(code)
        before, now = newest_versions(kept).get(expand_existing(code)), checksum_of(code)
        is_kept = before is not None and before.sha256 == now
        if is_kept or before is None:  # else it is said below
            notes += notes_on([code])
        if is_kept or not now:  # a package may be without files to compare
            continue
        folder.mkdir(exist_ok=True)
        copy, version = "", package_version(code) if content is None else ""
        if content is not None:
            copy = _free_name(Path(code), {one.copy for one in kept})
            write_atomic(folder / copy, content)
        kept.append(PluginVersion(code, copy, now, version))
        write_atomic(folder / INDEX_NAME, index_of(kept))
        if before is not None:
            diff = f": diff {folder / before.copy} {folder / copy}" if copy else ""
            notes.append(f"{describe_change(before)} since the last start of this run{diff}")
    return notes


def versions_used(folder: Path, config: Config) -> dict[str, str]:
    """Return the sha256 of each plug-in file or package as the run last used it, of those that results depend on.

    Args:
        folder: the run's ``plugins``; what it does not have is unknown.
        config: the run's.
    """
    kept = {_plain(version.file): version.sha256 for version in kept_versions(folder)}
    decisive = {key: value for key, value in settings_of(config).items() if not may_change(key)}
    used = map(_plain, plugins.code_in(decisive))
    return {code: kept[code] for code in used if code in kept}


def _read(file: str) -> bytes:
    """Return the content of a plug-in file, or of its copy that is imported instead.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return located(Path(file)).read_bytes()
    except OSError as error:
        raise UserError(f"the plug-in {file} cannot be read ({error.strerror})") from None


def _plain(code: str) -> str:
    """Return the path of a file, the same for each way to write it, or the name of a package."""
    return os.path.normpath(expand_existing(code))


def _free_name(file: Path, taken: set[str]) -> str:
    """Return ``NAME.py``, or the first of ``NAME-2.py``, ``NAME-3.py``, ... that is free."""
    name, number = file.name, 1
    while name in taken or name == INDEX_NAME:
        number += 1
        name = f"{file.stem}-{number}{file.suffix}"
    return name
