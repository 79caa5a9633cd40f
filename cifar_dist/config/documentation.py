"""Read the documentation of settings: the docstring of a section, and the text under each field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from functools import cache
from typing import NamedTuple


class Documented(NamedTuple):
    """What the source says of one field."""

    annotation: ast.expr
    text: str


def documented_fields(owner: type) -> dict[str, Documented]:
    """Return the annotation and text of each documented field of a section, its base classes' included."""
    found: dict[str, Documented] = {}
    for base in reversed(owner.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_fields(base)
    return found


def purpose(owner: type) -> str:
    """Return the docstring of a section without its list of attributes."""
    statement = _class_statement(owner)
    text = inspect.getdoc(owner) if statement is None else ast.get_docstring(statement)
    return (text or "").partition("\n\nAttributes:")[0]


@cache
def _class_statement(owner: type) -> ast.ClassDef | None:
    """Return the source of a class: ``__doc__`` is that of the dataclass decorator where Python removes docstrings.

    None for one that was not written as a class statement in a file.
    """
    try:
        (node,) = ast.parse(inspect.cleandoc(inspect.getsource(owner))).body
    except (OSError, TypeError, SyntaxError):
        return None
    return node if isinstance(node, ast.ClassDef) else None


def _own_fields(owner: type) -> dict[str, Documented]:
    if (node := _class_statement(owner)) is None:
        return {}
    found = {}
    for statement, after in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            if text:
                found[statement.target.id] = Documented(statement.annotation, str(text))
    return found
