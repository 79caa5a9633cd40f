"""The copies of plug-in files that the folder of a run keeps, and which of them are imported instead of the files.

:mod:`cifar_dist.run_folder.kept_plugins` writes them. A plug-in in an installed module has no file to copy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cifar_dist.config.section import expand_existing

FOLDER_NAME = "plugins"
INDEX_NAME = "plugins.json"

_COPIES: dict[Path, Path] = {}  # what is imported instead of a file
_NOTES: dict[Path, str] = {}  # on a file that is not what a run was trained with


@dataclass(frozen=True)
class PluginCopy:
    """A version of a plug-in file.

    Attributes:
        file: its path, as in the config: with ``~``, it is in the home folder of whoever uses the run.
        copy: its name in the run's ``plugins``.
        sha256: checksum of both.
    """

    file: str
    copy: str
    sha256: str


def kept_copies(folder: Path) -> list[PluginCopy]:
    """Read the list of copies in a run's ``plugins``, oldest first; empty if the index is missing or damaged."""
    try:
        entries = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["files"]
        return [PluginCopy(**{key: str(entry[key]) for key in ("file", "copy", "sha256")}) for entry in entries]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return []


def index_of(copies: Sequence[PluginCopy]) -> str:
    """Return the content of the index that :func:`kept_copies` reads."""
    return json.dumps({"files": [asdict(copy) for copy in copies]}, indent=2) + "\n"


def use_copies(folder: Path, *, also_changed: bool = False) -> None:
    """From now on import the plug-in files of a run from their newest copies, where the files do not exist.

    A damaged copy is not used.

    Args:
        folder: the run's ``plugins``.
        also_changed: also where a file is another one than its copy: to use the run as it was trained, or submitted.
    """
    run = folder.parent
    for file, kept in {expand_existing(kept.file): kept for kept in kept_copies(folder)}.items():
        _COPIES.pop(file, None)
        _NOTES.pop(file, None)
        copy, checksum = folder / Path(kept.copy).name, _checksum(file)
        if checksum == kept.sha256:
            continue
        if checksum and not also_changed:
            _NOTES[file] = f"{file} has changed since {run} was trained; using it as it is now, not its copy {copy}"
        elif _checksum(copy) == kept.sha256:
            _COPIES[file] = copy
            _NOTES[file] = f"{file} has changed since {run} copied it; using {copy}"
            if not checksum:
                _NOTES[file] = f"{file} does not exist here; using its copy {copy}"
        elif checksum:
            _NOTES[file] = f"{file} has changed since {run} was trained, and its copy {copy} is damaged"


def located(file: Path) -> Path:
    """Return where the content of a plug-in file is: the file, or its copy."""
    file = expand_existing(file)
    return _COPIES.get(file, file)


def notes_on(files: Iterable[Path]) -> list[str]:
    """Return one line for each of these files that is imported from a copy, or should be."""
    return [_NOTES[file] for file in map(expand_existing, files) if file in _NOTES]


def _checksum(path: Path) -> str:
    """Return the hexadecimal sha256 of a file; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
