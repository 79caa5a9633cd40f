"""``COMPLETE.json``: the layout's version, and the size and checksum of every file. Written last, read first."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cifar_dist.checkpoint.contents import CheckpointError
from cifar_dist.files import sha256

MARKER: Final = "COMPLETE.json"
VERSION: Final = 2

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
AVERAGED, AVERAGED_STATISTICS = "averaged.safetensors", "averaged_statistics.safetensors"
MODEL_V1: Final = "model.safetensors"
"""The file of version 1 with the weights to evaluate: the last ones, or their average."""

_FILES: Final = {
    1: ({MODEL_V1, OPTIMIZER, STATE},),
    2: ({WEIGHTS, OPTIMIZER, STATE}, {WEIGHTS, AVERAGED, AVERAGED_STATISTICS, OPTIMIZER, STATE}),
}
"""The files that a checkpoint of each version may consist of, besides its marker."""


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


def write_marker(path: Path, names: list[str]) -> None:
    """Mark the checkpoint in ``path`` as complete, with the files ``names``."""
    files = {name: FileFacts((path / name).stat().st_size, sha256(path / name)) for name in names}
    text = json.dumps(asdict(Marker(VERSION, files)), indent=2)
    (path / MARKER).write_text(text + "\n", encoding="utf-8")


def read_marker(path: Path) -> Marker:
    """Read the marker of the checkpoint in ``path``.

    Raises:
        CheckpointError: it does not exist, cannot be read, or has an unsupported version.
    """
    try:
        raw = json.loads((path / MARKER).read_text(encoding="utf-8"))
        version = raw["version"]
        if type(version) is not int or version not in _FILES:
            known = " and ".join(map(str, _FILES))
            raise CheckpointError(f"its version is {version!r:.20}, this program reads versions {known}")
        files = {name: FileFacts(int(facts["bytes"]), str(facts["sha256"])) for name, facts in raw["files"].items()}
    except FileNotFoundError:
        raise CheckpointError(f"it has no {MARKER}, so it was never finished") from None
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"its {MARKER} cannot be read ({error})") from None
    if set(files) not in _FILES[version]:
        raise CheckpointError(f"its {MARKER} lists {', '.join(files)[:100] or 'no file'}, which is not a checkpoint")
    return Marker(version, files)


def verify(path: Path) -> None:
    """Check every file of the checkpoint in ``path`` against its marker.

    Raises:
        CheckpointError: a file is missing, truncated or changed.
    """
    for name, saved in read_marker(path).files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{name} is missing")
        if file.stat().st_size != saved.bytes:
            raise CheckpointError(f"{name} has {file.stat().st_size:,} of {saved.bytes:,} bytes")
        try:
            found = sha256(file)
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read ({error.strerror})") from None
        if found != saved.sha256:
            raise CheckpointError(f"{name} differs from what was saved (sha256 does not match)")
