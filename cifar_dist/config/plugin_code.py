"""Where the code of plug-ins is, without an import."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType


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
