"""Code from outside the package: ``path/to/file.py:Attribute`` or ``package.module:Attribute``.

A path is relative to the working directory, like ``data.path``. Only :func:`load` imports anything.
A run that is resumed where a file is missing imports the copy that its folder keeps.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from cifar_dist.errors import first_line, nearest, printable

_COPIES: dict[Path, Path] = {}
_MODULES: set[str] = set()  # that were imported


def import_copies(copies: Mapping[Path, Path]) -> None:
    """From now on import each of these files from its copy if the file itself does not exist.

    Args:
        copies: copy by file, as a config names the file.
    """
    _COPIES.update(copies)


def located(file: Path) -> Path:
    """Return where the content of a plug-in file is: the file, or its copy."""
    return file if file.is_file() else _COPIES.get(file, file)


def is_spec(name: str) -> bool:
    """Whether a name locates code, rather than naming something built in."""
    return ":" in name


def file_of(spec: str) -> Path | None:
    """Return the file that ``path/to/file.py:Attribute`` names; None for a module. Imports nothing."""
    place = spec.rpartition(":")[0]
    return Path(place).expanduser() if place.endswith(".py") else None


def load(spec: str) -> object:
    """Import the module of ``spec`` and return the attribute. Each module is imported once per process.

    Raises:
        ValueError: no such file, module or attribute, or the import failed; the message begins with ``name``.
    """
    place, _, attribute = spec.rpartition(":")
    file = file_of(spec)
    file = file and located(file)
    if file is None and not all(part.isidentifier() for part in place.split(".")):
        raise ValueError(f"name {spec!r} must be path/to/file.py:Attribute or package.module:Attribute")
    if file is not None and not file.is_file():
        raise ValueError(f"name {spec!r}: file {file} does not exist")
    try:
        module = importlib.import_module(place) if file is None else _import_file(file)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and file is None and f"{place}.".startswith(f"{error.name}."):
            raise ValueError(f"name {spec!r}: module {place} is not installed; for a file, give its path") from None
        raise ValueError(f"name {spec!r}: importing {place} raised {_described(error)}") from None
    _MODULES.add(module.__name__)
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ValueError(f"name {spec!r}: {place} has no {attribute!r}; {nearest(attribute, public)}")
    found: object = getattr(module, attribute)
    return found


def describe_failure(error: BaseException) -> str:
    """Return in one line which line of a plug-in raised ``error``, or called what did; empty if none did."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") in _MODULES:
            place = f"{frame.f_code.co_filename}, line {line}"
    return place and printable(f"the plug-in {place}, raised {_described(error)}")


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__


def _import_file(file: Path) -> ModuleType:
    """Import a file under a private name, so that it cannot shadow a module or be shadowed by one."""
    path = file.resolve()
    name = f"_cifar_dist_plugin_{hashlib.sha256(bytes(path)).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a file called .py has a loader"
    assert spec.loader is not None, "a file called .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, because resolving the type hints of its dataclasses requires it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
