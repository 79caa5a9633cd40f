"""Where the code of plug-ins is, its checksum and its version, without an import.

A plug-in is in a file, called by its path, or in a top-level package of the Python path, called by its name: all Python
files of the package are one unit, for they import each other. What is said of a package holds for a single module, too.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType


def is_package(code: str) -> bool:
    """Whether the code of a plug-in is in a package, rather than in a file."""
    return not code.endswith(".py")


def file_checksum(path: Path) -> str:
    """Return the hexadecimal sha256 of a file; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def folder_checksum(*folders: Path) -> str:
    """Return the hexadecimal sha256 of the names and contents of the Python files in folders; empty without any."""
    files = {str(path.relative_to(folder)): path for folder in folders for path in sorted(folder.rglob("*.py"))}
    found = {name: file_checksum(path) for name, path in files.items()}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest() if found else ""


def package_checksum(package: str) -> str:
    """Return the hexadecimal sha256 of an installed package; empty if it is not, or has no Python files."""
    places = _places_of(package)
    return file_checksum(places[0]) if places and places[0].is_file() else folder_checksum(*places)


def package_version(package: str) -> str:
    """Return the version of the distribution that a package belongs to; empty for none."""
    distributions = importlib.metadata.packages_distributions().get(package, [])
    return ", ".join(sorted({importlib.metadata.version(name) for name in distributions}))


def is_beside_command(module: ModuleType) -> bool:
    """Whether a module was found only because of the script's folder, or of the folder that ``python -m`` was typed in.

    Python puts it first on the path of this command; the console script and the ranks of a launcher have another one,
    or none.
    """
    if sys.flags.safe_path or not getattr(module, "__file__", None):
        return False
    file = Path(str(module.__file__)).absolute()
    depth = module.__name__.count(".") + hasattr(module, "__path__")  # of the file below the folder on the path
    places = [place.resolve() for place in _places_of(module.__name__.partition(".")[0])]
    is_first = Path(sys.path[0]).resolve() in [folder.resolve() for folder in file.parents[depth : depth + 1]]
    return is_first and not any(file.resolve().is_relative_to(place) for place in places)


def _places_of(package: str) -> list[Path]:
    """Return the folders of a package, or the file of a single module, as every command finds it; empty for none."""
    path = sys.path if sys.flags.safe_path else sys.path[1:]  # see `is_beside_command`
    for finder in sys.meta_path:
        spec = PathFinder.find_spec(package, path) if finder is PathFinder else finder.find_spec(package, None)
        if spec is not None:
            return [Path(place) for place in spec.submodule_search_locations or [spec.origin or ""]]
    return []
