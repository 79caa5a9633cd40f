"""Code from outside the package: ``path/to/file.py:Attribute`` or ``package.module:Attribute``.

A path is relative to the working directory, like ``data.path``. A module is one that every command finds. Only
:func:`load` imports anything.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from cifar_dist.config.plugin_code import is_beside_command
from cifar_dist.config.plugin_copies import located
from cifar_dist.config.plugin_errors import describe_import_failure, remember_plugin
from cifar_dist.config.section import expand_existing
from cifar_dist.config.tree import to_tree
from cifar_dist.errors import nearest, quoted

if TYPE_CHECKING:
    from cifar_dist.config import Config

LIBRARIES: Final = ("torchvision", "timm")
"""Libraries whose networks have names that look like those of plug-ins: ``timm:NAME``."""


def is_spec(name: str) -> bool:
    """Whether a name locates code, rather than naming something built in. Without an attribute, :func:`load` fails."""
    return ":" in name or name.endswith(".py")


def file_of(spec: str) -> Path | None:
    """Return the file that ``path/to/file.py:Attribute`` names; None for a module. Imports nothing."""
    written = _written_file(spec)
    return None if written is None else expand_existing(written)


def code_of(config: Config) -> list[str]:
    """List the code that a config names, each once, as :func:`code_in` does."""
    return code_in(to_tree(config))


def code_in(settings: object) -> list[str]:
    """List the files that settings name, as they write the paths, and the top-level packages, each once."""
    return list(dict.fromkeys(filter(None, map(_code_of, _texts(settings)))))


def is_same(name: str, other: str) -> bool:
    """Whether two names are equal, or locate the same attribute of the same file."""
    return _with_absolute_path(name) == _with_absolute_path(other)


def with_plain_paths(settings: object) -> object:
    """Return settings in which ``./net.py:Net`` is ``net.py:Net``: two spellings of a path are one plug-in."""
    if isinstance(settings, Mapping):
        return {key: with_plain_paths(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [with_plain_paths(value) for value in settings]
    if isinstance(settings, str) and file_of(settings) is not None:
        path, colon, attribute = settings.rpartition(":")
        is_expanded = expand_existing(path) != Path(
            path
        )  # and ".." after it leads to another folder than its text says
        return f"{Path(path) if is_expanded else os.path.normpath(path)}{colon}{attribute}"
    return settings


def load(spec: str) -> object:
    """Import the module of ``spec`` and return the attribute. Each module is imported once per process.

    Raises:
        ValueError: no such file, module or attribute, or the import failed; the message begins with ``name``.
    """
    place, _, attribute = spec.rpartition(":")
    file = file_of(spec)
    file = file and located(file)
    if spec.endswith(".py"):
        raise ValueError(f"name {spec!r} does not say what to use of that file; write {spec}:Attribute")
    if file is None and not all(part.isidentifier() for part in place.split(".")):
        raise ValueError(f"name {spec!r} must be path/to/file.py:Attribute or package.module:Attribute")
    if file is not None and not file.is_file():
        raise ValueError(f"name {spec!r}: file {file} does not exist")
    try:
        module = importlib.import_module(place) if file is None else _import_file(file)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and file is None and f"{place}.".startswith(f"{error.name}."):
            raise ValueError(f"name {spec!r}: module {place} is not installed; {_way_to_file(spec)}") from None
        cause = describe_import_failure(file, error)
        raise ValueError(f"name {spec!r}: importing {file or place} raised {cause}") from None
    if file is None and is_beside_command(module):
        raise ValueError(f"name {spec!r}: module {place} is not installed; {_way_to_file(spec, module.__file__)}")
    remember_plugin(module)
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ValueError(f"name {spec!r}: {place} has no {attribute!r}; {nearest(attribute, public)}")
    found: object = getattr(module, attribute)
    return found


def _written_file(spec: str) -> Path | None:
    """Return what :func:`file_of` does, with ``~`` and variables as written: for another user they differ."""
    path = spec.rpartition(":")[0]
    return Path(path) if path.endswith(".py") else None


def _code_of(spec: str) -> str:
    """Return the path of the file or the top-level package that a name locates; empty if it locates no code."""
    file = _written_file(spec)
    if file is not None:
        return str(file)
    place, _, attribute = spec.rpartition(":")
    is_module = place not in LIBRARIES and all(part.isidentifier() for part in (*place.split("."), attribute))
    return place.partition(".")[0] if is_module else ""


def _way_to_file(spec: str, file: str | None = None) -> str:
    """Say how to name a plug-in that is not in an installed module.

    Args:
        spec: as it was named.
        file: where it is; None looks for it in the working directory.
    """
    place, _, attribute = spec.rpartition(":")
    stem = Path(*place.split("."))
    beside = [path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()]
    if not (file or beside):
        return "for a file, give its path"
    found = Path(file or beside[0]).resolve()
    folder = found.parents[place.count(".") + (found.name == "__init__.py")]
    shown = found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found
    return f"name its file, {shown}:{attribute}, or add its folder: export PYTHONPATH={quoted(folder)}"


def _with_absolute_path(name: str) -> str:
    file = file_of(name)
    return name if file is None else f"{os.path.abspath(file)}:{name.rpartition(':')[2]}"


def _import_file(file: Path) -> ModuleType:
    """Import a file under a private name, so that it cannot shadow a module or be shadowed by one."""
    path = file.resolve()
    name = f"_cifar_dist_plugin_{hashlib.sha256(bytes(path)).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    # Never as a package, also of `__init__.py`: of the modules beside it there would be no copies in a run.
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=None)
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
