"""Code from outside the package: ``path/to/file.py:Attribute`` or ``package.module:Attribute``.

A path is relative to the working directory, like ``data.path``. Only :func:`load` imports anything.

The folder of a run keeps copies of its files, which :mod:`cifar_dist.plugin_copies` writes. :func:`use_copies` decides
which of them are imported instead of the files.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

from cifar_dist.errors import first_line, nearest, printable, quoted

FOLDER_NAME = "plugins"
INDEX_NAME = "plugins.json"

_COPIES: dict[Path, Path] = {}  # what is imported instead of a file
_NOTES: dict[Path, str] = {}  # on a file that is not what a run was trained with
_MODULES: set[str] = set()  # that were imported


@dataclass(frozen=True)
class PluginCopy:
    """A version of a plug-in file.

    Attributes:
        file: its path, as in the config.
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


def use_copies(folder: Path, *, also_changed: bool = False) -> None:
    """From now on import the plug-in files of a run from their newest copies, where the files do not exist.

    A damaged copy is not used.

    Args:
        folder: the run's ``plugins``.
        also_changed: also where a file is another one than its copy: to use the run as it was trained.
    """
    run = folder.parent
    for file, kept in {Path(kept.file): kept for kept in kept_copies(folder)}.items():
        _COPIES.pop(file, None)
        _NOTES.pop(file, None)
        copy, checksum = folder / Path(kept.copy).name, _checksum(file)
        if checksum == kept.sha256:
            continue
        if checksum and not also_changed:
            _NOTES[file] = f"{file} has changed since {run} was trained; using it as it is now, not its copy {copy}"
        elif _checksum(copy) == kept.sha256:
            _COPIES[file] = copy
            _NOTES[file] = f"{file} has changed since {run} was trained; using {copy}"
            if not checksum:
                _NOTES[file] = f"{file} does not exist here; using its copy {copy}"
        elif checksum:
            _NOTES[file] = f"{file} has changed since {run} was trained, and its copy {copy} is damaged"


def located(file: Path) -> Path:
    """Return where the content of a plug-in file is: the file, or its copy."""
    return _COPIES.get(file, file)


def notes_on(files: Iterable[Path]) -> list[str]:
    """Return one line for each of these files that is imported from a copy, or should be."""
    return [_NOTES[file] for file in files if file in _NOTES]


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
        told = f"{_described(error)}{_line_in(file, error)}{_way_to_sibling(file, error)}"
        raise ValueError(f"name {spec!r}: importing {file or place} raised {told}") from None
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
    if place:
        return printable(f"the plug-in {place}, raised {_described(error)}")
    called = _called_wrongly(error)
    if called is None:
        return ""
    code, shown = called.__code__, f"{called.__qualname__}{_arguments_of(called)}"
    place = f"{code.co_filename}, line {code.co_firstlineno}, {shown}"
    return printable(f"the plug-in {place}, was called with other arguments: {_described(error)}")


def other_arguments(kind: type) -> str:
    """Return which method of a plug-in's class is called with other arguments than it takes, and how to write it.

    A method is called as the first of the bases from outside the plug-in that has it declares it. Empty for none.
    """
    bases = [cls for cls in reversed(kind.__mro__) if cls.__module__ not in _MODULES]
    for name in dict.fromkeys(name for cls in bases for name in vars(cls)):
        found = next(vars(cls)[name] for cls in kind.__mro__ if name in vars(cls))
        declared = next(vars(cls)[name] for cls in bases if name in vars(cls))
        special = name.startswith("__") and name not in ("__call__", "__post_init__")
        if special or not (isinstance(found, FunctionType) and isinstance(declared, FunctionType)):
            continue
        wanted = inspect.signature(declared).parameters.values()
        positional = [one.name for one in wanted if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        named = [one.name for one in wanted if one.kind == one.KEYWORD_ONLY]
        try:
            inspect.signature(found).bind(*positional, **dict.fromkeys(named))
        except TypeError:
            takes = f"{kind.__name__}.{name}{_arguments_of(found)}"
            return f"{takes} is called with other arguments; write {name}{_arguments_of(declared)}"
    return ""


def _called_wrongly(error: BaseException) -> FunctionType | None:
    """Return the function of a plug-in whose call with other arguments than it takes raised ``error``."""
    found = re.match(r"([\w.]+)\(\) (?:missing|takes|got) ", str(error))
    if not found or not isinstance(error, TypeError):
        return None
    for module in sorted(_MODULES):
        inner: object = sys.modules.get(module)
        for part in found[1].split("."):
            inner = getattr(inner, part, None)
        if isinstance(inner, FunctionType) and inner.__module__ == module:
            return inner
    return None


def _arguments_of(function: FunctionType) -> str:
    """Format the arguments of a function without their types: ``(self, step, *, start, total)``."""
    signature = inspect.signature(function)
    plain = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


def _line_in(file: Path | None, error: BaseException) -> str:
    """Return `` (line 3)``, the line of ``file`` that raised ``error``; empty if none did."""
    if file is None:
        return ""
    path = str(file.resolve())
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
    if isinstance(error, SyntaxError) and error.filename == path and error.lineno:
        lines.append(error.lineno)
    return f" (line {lines[-1]})" if lines else ""


def _way_to_sibling(file: Path | None, error: BaseException) -> str:
    """Explain why a module beside ``file`` is not imported; empty if that is not the error."""
    if file is None or not isinstance(error, ImportError):
        return ""
    folder, name = file.resolve().parent, str(error.name).partition(".")[0]
    if "relative import" in str(error):
        return (
            "; only the file itself is imported: put both into one, or install the package and name package.module:Name"
        )
    if not ((folder / f"{name}.py").is_file() or (folder / name).is_dir()):
        return ""
    add = f"export PYTHONPATH={quoted(folder)}"
    return f"; only the file itself is imported: put both into one, or add its folder: {add}"


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__


def _checksum(path: Path) -> str:
    """Return the hexadecimal sha256 of a file; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


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
