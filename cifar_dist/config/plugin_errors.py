"""What is wrong with a plug-in, in one line: its import, what its methods take or return, the line that raised."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import traceback
from pathlib import Path
from types import FunctionType, ModuleType

from cifar_dist.errors import first_line, printable, quoted

_MODULES: set[str] = set()  # of plug-ins that were imported


def remember_plugin(module: ModuleType) -> None:
    """From now on, count what a module raises as a failure of a plug-in."""
    _MODULES.add(module.__name__)


def describe_import_failure(file: Path | None, error: BaseException) -> str:
    """Return in one line what the import of a plug-in raised.

    Args:
        file: of the plug-in; None for an installed module.
        error: what was raised.
    """
    return f"{_described(error)}{_line_in(file, error)}{_way_to_sibling(file, error)}"


def describe_plugin_failure(error: BaseException) -> str:
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


def describe_value(found: object) -> str:
    """Say what a plug-in returned: ``torch.uint8 [60, 3, 32, 32]``, or the name of a type that is not a tensor."""
    from torch import Tensor

    if not isinstance(found, Tensor):
        return type(found).__name__
    place = "" if found.device.type == "cpu" else f" on {found.device}"
    return f"{found.dtype} {list(found.shape)}{place}"


def other_arguments(kind: type, protocol: type = object) -> str:
    """Return which method of a plug-in's class is called with other arguments than it takes, and how to write it.

    A method is called as the first of the bases from outside the plug-in that has it declares it. Empty for none.

    Args:
        kind: the class.
        protocol: what it implements without deriving from it, or its base; a method of it that ``kind`` lacks is named.
    """
    bases = [protocol, *(cls for cls in reversed(kind.__mro__) if cls.__module__ not in _MODULES)]
    for name in dict.fromkeys(name for cls in bases for name in vars(cls)):
        found = next((vars(cls)[name] for cls in kind.__mro__ if name in vars(cls)), None)
        declared = next(vars(cls)[name] for cls in bases if name in vars(cls))
        special = name.startswith("__") and name not in ("__call__", "__post_init__")
        if special or not isinstance(declared, FunctionType):
            continue
        if found is None and not hasattr(kind, "__getattr__"):
            return f"{kind.__name__} does not define {name}{_arguments_of(declared)}"
        if not isinstance(found, FunctionType):
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


def describe_unreadable_field(kind: type, error: Exception) -> str:
    """Return in one line which field of a plug-in's settings has a type that no setting can have.

    Args:
        kind: the dataclass.
        error: what pydantic raised for it.
    """
    from pydantic import PydanticUserError, TypeAdapter

    place = f"{kind.__name__} has a field whose type"
    for field in dataclasses.fields(kind):
        owner = next(cls for cls in kind.__mro__ if field.name in inspect.get_annotations(cls))
        alone = dataclasses.make_dataclass(owner.__name__, [(field.name, field.type)])
        alone.__module__ = owner.__module__  # which has the names of its type
        try:
            TypeAdapter(alone).rebuild()
        except Exception as of_field:
            shown = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
            place = f"{kind.__name__}.{field.name} has the type {shown.replace(f'{owner.__module__}.', '')}, which"
            error = of_field
            break
    is_read = isinstance(error, PydanticUserError)
    fault = "a recipe cannot contain" if is_read else f"cannot be read: {first_line(error)}"
    return f"{place} {fault}; make it a number, a text, true or false, or a list or table of these"


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
