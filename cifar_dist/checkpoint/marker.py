"""``COMPLETE.json``: the layout's version, and the size and checksum of every file. Written last, read first."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cifar_dist.checkpoint.contents import CheckpointError, NewerCheckpointError
from cifar_dist.files.checksums import sha256

MARKER: Final = "COMPLETE.json"
VERSION: Final = 2
"""The layout that one process writes."""
VERSION_IN_PARTS: Final = 3
"""The same, except that each file of tensors is one file for each process that wrote it."""

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
AVERAGED, AVERAGED_STATISTICS = "averaged.safetensors", "averaged_statistics.safetensors"
MODEL_OF_VERSION_1: Final = "model.safetensors"
"""The file of version 1 with the weights to evaluate: the last ones, or their average."""

_FILES: Final = {
    1: ({MODEL_OF_VERSION_1, OPTIMIZER, STATE},),
    2: ({WEIGHTS, OPTIMIZER, STATE}, {WEIGHTS, AVERAGED, AVERAGED_STATISTICS, OPTIMIZER, STATE}),
}
"""The files that a checkpoint of a version may consist of, besides its marker; version 3 has parts of version 2's."""


def part_name(name: str, part: int, parts: int) -> str:
    """Name a part, counted from 1, of the file ``name``: ``weights-1-of-4.safetensors``."""
    stem, _, suffix = name.partition(".")
    return f"{stem}-{part}-of-{parts}.{suffix}"


@dataclass(frozen=True)
class FileFacts:
    """Size and checksum of a file as it was saved."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Marker:
    """The contents of ``COMPLETE.json``."""

    version: int
    files: dict[str, FileFacts]

    def parts_of(self, name: str) -> list[str]:
        """List the files that have the tensors of ``name``: itself, or its parts; none if the checkpoint has none."""
        return [part for part in _parts(name, _count_parts(self.files)) if part in self.files]


def measure(path: Path, names: Iterable[str]) -> dict[str, FileFacts]:
    """Measure the files ``names`` in the folder ``path``."""
    return {name: FileFacts((path / name).stat().st_size, sha256(path / name)) for name in names}


def write_marker(path: Path, files: Mapping[str, FileFacts]) -> None:
    """Mark the checkpoint in ``path`` as complete, with these files."""
    version = VERSION_IN_PARTS if _count_parts(files) else VERSION
    text = json.dumps(asdict(Marker(version, dict(files))), indent=2)
    (path / MARKER).write_text(text + "\n", encoding="utf-8")


def identity(path: Path) -> tuple[int, int] | None:
    """Identify what the folder ``path`` holds: something else once a run has saved it again, None if it is no more.

    Raises:
        OSError: its marker cannot be found out about.
    """
    try:
        facts = (path / MARKER).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return facts.st_ino, facts.st_mtime_ns


def read_marker(path: Path) -> Marker:
    """Read the marker of the checkpoint in ``path``.

    Raises:
        CheckpointError: it does not exist or is damaged.
        NewerCheckpointError: it has a later version than this program reads.
        OSError: the disk or the file server does not let it be read, which says nothing about the checkpoint.
    """
    try:
        raw = json.loads(read_file(path, MARKER))
        version = raw["version"]
        if type(version) is int and version > VERSION_IN_PARTS:
            raise NewerCheckpointError(
                f"{path} has version {version!r:.20} of the layout, this program reads versions up to "
                f"{VERSION_IN_PARTS}; continue with the newer program, or move this checkpoint away to use an "
                "earlier one"
            )
        if type(version) is not int or version not in (*_FILES, VERSION_IN_PARTS):
            raise ValueError(f"its version is {version!r:.20}")
        files = {name: FileFacts(int(facts["bytes"]), str(facts["sha256"])) for name, facts in raw["files"].items()}
    except (CheckpointError, NewerCheckpointError):
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"its {MARKER} cannot be used ({error})") from None
    if set(files) not in _layouts(version, files):
        raise CheckpointError(f"its {MARKER} lists {', '.join(files)[:100] or 'no file'}, which is not a checkpoint")
    return Marker(version, files)


def _layouts(version: int, names: Collection[str]) -> list[set[str]]:
    """The files of each checkpoint of ``version`` that has as many parts as ``names`` show."""
    if version != VERSION_IN_PARTS:
        return list(_FILES[version])
    parts = _count_parts(names)
    layouts = [{part for name in whole - {STATE} for part in _parts(name, parts)} for whole in _FILES[VERSION]]
    return [{*layout, STATE} for layout in layouts] if parts else []


def _parts(name: str, parts: int) -> list[str]:
    return [part_name(name, part, parts) for part in range(1, parts + 1)] if parts else [name]


def _count_parts(names: Iterable[str]) -> int:
    """Count the parts of a checkpoint with the files ``names``; 0 where one process wrote them."""
    return sum(name.startswith(WEIGHTS.replace(".safetensors", "-")) for name in names)


def verify(path: Path) -> None:
    """Check every file of the checkpoint in ``path`` against its marker.

    Raises:
        CheckpointError: a file is missing, truncated or changed.
        NewerCheckpointError, OSError: as :func:`read_marker`.
    """
    for damage in damages(path):
        raise damage


def damages(path: Path, *, checksums: bool = True) -> Iterator[CheckpointError]:
    """Yield the damage of each file of the checkpoint in ``path``; without ``checksums`` only sizes are compared.

    Raises:
        NewerCheckpointError, OSError: as :func:`read_marker`.
    """
    try:
        files = read_marker(path).files
    except CheckpointError as error:
        yield error
        return
    for name, saved in files.items():
        try:
            with _missing_is_damage(name):
                size = (path / name).stat().st_size
                changed = size == saved.bytes and checksums and sha256(path / name) != saved.sha256
        except CheckpointError as error:
            yield error
            continue
        if size != saved.bytes:
            yield CheckpointError(f"{name} has {size:,} of {saved.bytes:,} bytes")
        elif changed:
            yield CheckpointError(f"{name} differs from what was saved (sha256 does not match)")


def read_file(path: Path, name: str) -> bytes:
    """Read a file of the checkpoint in ``path``; one that does not exist raises CheckpointError."""
    with _missing_is_damage(name):
        return (path / name).read_bytes()


@contextlib.contextmanager
def _missing_is_damage(name: str) -> Iterator[None]:
    """Turn a missing file into damage. Other errors are those of a disk or file server, and may pass."""
    try:
        yield
    except FileNotFoundError:
        what = f"it has no {MARKER}, so it was never finished" if name == MARKER else f"{name} is missing"
        raise CheckpointError(what) from None
    except (IsADirectoryError, NotADirectoryError):
        raise CheckpointError(f"{name} is not a file") from None
