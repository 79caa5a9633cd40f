"""Write the tables of docs/config.md from the docstrings of cifar_dist/config/: python docs/make_config.py"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import get_type_hints

from cifar_dist import config
from cifar_dist.recipe import to_tree

DOCUMENT = Path(__file__).with_name("config.md")
BEGIN = "<!-- written by docs/make_config.py: everything from here to the end of the file -->\n"


def tables() -> str:
    """One Markdown table per section of the config: key, type, default, meaning."""
    hints = get_type_hints(config.Config)
    defaults = to_tree(config.Config())
    parts = []
    for section in dataclasses.fields(config.Config):
        owner = _class(hints[section.name])
        lines = [f"## {section.name}", "", ast.get_docstring(owner) or "", ""]
        lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        for name, annotation, text in _fields(owner):
            default = _toml(defaults[section.name][name])
            lines.append(f"| `{section.name}.{name}` | {_type(annotation)} | `{default}` | {_cell(text)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def up_to_date(document: str) -> str:
    """``document``, the text of docs/config.md, with its tables made anew.

    Raises:
        ValueError: it has lost the line that the tables come after.
    """
    head, begin, _ = document.partition(BEGIN)
    if not begin:
        raise ValueError(f"{DOCUMENT.name} has lost its line {BEGIN.strip()}; put it before the first table")
    return f"{head}{BEGIN}\n{tables()}"


def _class(section: type) -> ast.ClassDef:
    node = ast.parse(inspect.getsource(section)).body[0]
    assert isinstance(node, ast.ClassDef)
    return node


def _fields(owner: ast.ClassDef) -> list[tuple[str, ast.expr, str]]:
    """(name, annotation, the text under it) of each field, in order."""
    found = []
    for statement, after in zip(owner.body, [*owner.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            found.append((statement.target.id, statement.annotation, str(text)))
    return found


def _type(annotation: ast.expr) -> str:
    """A type as it is written in a recipe."""
    if isinstance(annotation, ast.Subscript):
        kind = ast.unparse(annotation.value)
        items = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if kind == "Literal":
            return ", ".join(f"`{ast.literal_eval(item)}`" for item in items)
        return "table" if kind == "dict" else f"list of {_type(items[0])}s"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true, false"}[ast.unparse(annotation)]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return "{}" if value == {} else repr(value)


def _cell(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split())).replace("|", r"\|")


if __name__ == "__main__":
    DOCUMENT.write_text(up_to_date(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
