"""The versions of plug-ins that the folder of a run keeps, and which copies are imported instead of the files.

:mod:`cifar_dist.run_folder.kept_plugins` writes them. Of a package there is no copy, but its checksum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cifar_dist.config.plugin_code import file_checksum, is_package, package_checksum, package_version
from cifar_dist.config.section import expand_existing

FOLDER_NAME = "plugins"
INDEX_NAME = "plugins.json"

_COPIES: dict[Path, Path] = {}  # what is imported instead of a file
_NOTES: dict[Path, str] = {}  # on code that is not what a run was trained with


@dataclass(frozen=True)
class PluginVersion:
    """A version of the code of plug-ins.

    Attributes:
        file: its path, as in the config: with ``~``, it is in the home folder of whoever uses the run. For a package,
            its name.
        copy: the name of the file's copy in the run's ``plugins``; empty for a package.
        sha256: checksum of the code.
        version: of a package's distribution; empty if it is unknown.
    """

    file: str
    copy: str
    sha256: str
    version: str = ""


def kept_versions(folder: Path) -> list[PluginVersion]:
    """Read the list of versions in a run's ``plugins``, oldest first; empty if the index is missing or damaged."""
    try:
        entries = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["files"]
        known = [{"version": "", **entry} for entry in entries]  # earlier versions of this package wrote no version
        return [PluginVersion(**{one.name: str(entry[one.name]) for one in fields(PluginVersion)}) for entry in known]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return []


def index_of(versions: Sequence[PluginVersion]) -> str:
    """Return the content of the index that :func:`kept_versions` reads."""
    return json.dumps({"files": [asdict(version) for version in versions]}, indent=2) + "\n"


def use_copies(folder: Path, *, also_changed: bool = False) -> None:
    """From now on import the plug-in files of a run from their newest copies, where the files do not exist.

    A damaged copy is not used. A package is imported as it is.

    Args:
        folder: the run's ``plugins``.
        also_changed: also where a file is another one than its copy: to use the run as it was trained, or submitted.
    """
    run = folder.parent
    for code, kept in newest_versions(kept_versions(folder)).items():
        _COPIES.pop(code, None)
        _NOTES.pop(code, None)
        checksum, copy = checksum_of(kept.file), folder / Path(kept.copy).name
        if checksum == kept.sha256:
            continue
        if is_package(kept.file):
            if checksum:
                change = f"{describe_change(kept)} since {run} used it"
                _NOTES[code] = f"{change}; using it as it is now, because packages are not copied"
        elif checksum and not also_changed:
            _NOTES[code] = f"{code} has changed since {run} was trained; using it as it is now, not its copy {copy}"
        elif file_checksum(copy) == kept.sha256:
            _COPIES[code] = copy
            _NOTES[code] = f"{code} has changed since {run} copied it; using {copy}"
            if not checksum:
                _NOTES[code] = f"{code} does not exist here; using its copy {copy}"
        elif checksum:
            _NOTES[code] = f"{code} has changed since {run} was trained, and its copy {copy} is damaged"


def newest_versions(versions: Iterable[PluginVersion]) -> dict[Path, PluginVersion]:
    """Return the newest version of each file or package, by its path as it is for this user, or its name."""
    return {expand_existing(version.file): version for version in versions}


def checksum_of(code: str) -> str:
    """Return the sha256 of a plug-in's file or package as it is imported here; empty if it does not exist."""
    return package_checksum(code) if is_package(code) else file_checksum(located(Path(code)))


def describe_change(kept: PluginVersion) -> str:
    """Say that the code of a plug-in has changed, and a package's version if that has."""
    now = package_version(kept.file) if is_package(kept.file) else ""
    versions = f", from version {kept.version} to {now}," if now and kept.version and now != kept.version else ""
    return f"the plug-in {kept.file} has changed{versions}"


def located(file: Path) -> Path:
    """Return where the content of a plug-in file is: the file, or its copy."""
    file = expand_existing(file)
    return _COPIES.get(file, file)


def notes_on(code: Iterable[str]) -> list[str]:
    """Return one line for each of these files and packages that is imported from a copy, or is another one."""
    return [_NOTES[one] for one in map(expand_existing, code) if one in _NOTES]
