"""Write the tables of docs/config.md from the docstrings of cifar_dist/config/: python docs/make_config.py"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_type_hints

from cifar_dist import config
from cifar_dist.config.choice import Choice, is_root
from cifar_dist.config.documentation import documented_fields, purpose
from cifar_dist.config.named_items import item_root
from cifar_dist.config.section import key_of
from cifar_dist.config.toml_text import inline_toml
from cifar_dist.models import registry
from cifar_dist.models.options import defaults

DOCUMENT = Path(__file__).with_name("config.md")
BEGIN = "<!-- written by docs/make_config.py: everything from here to the end of the file -->\n"


def tables() -> str:
    """Markdown tables for each section of the config and each variant of a choice: key, type, default, meaning."""
    hints = get_type_hints(config.Config)
    parts = []
    for section in dataclasses.fields(config.Config):
        owner = hints[section.name]
        parts.append(f"## {section.name}\n\n{_table(owner, section.name, dataclasses.fields(owner))}")
        if owner is config.ModelConfig:
            parts.append(_networks())
        for key, root in _choices(owner, section.name):
            parts += _variants(root, key, depth=3)
        if owner.named_items:
            parts += _items(item_root(owner), section.name)
    return "\n\n".join(parts) + "\n"


def _networks() -> str:
    """A row for each registered network, with its options, their defaults and the file that describes them."""
    lines = ["| `model.name` | `model.options` and their defaults | described in |", "| --- | --- | --- |"]
    for name in registry.names():
        builder = registry.builder_of(name)
        options = {key: inline_toml(value) for key, value in defaults(builder).items()}
        shown = ", ".join(f"`{key} = {value}`" for key, value in options.items()) or "none"
        file = f"{builder.__module__.rpartition('.')[2]}.py"
        lines.append(f"| `{name}` | {shown} | [{file}](../cifar_dist/models/{file}) |")
    return "\n".join(lines)


def _choices(owner: type, section: str) -> Iterator[tuple[str, type[Choice]]]:
    """The section itself where it is a choice."""
    if is_root(owner):
        yield section, owner


def _items(root: type[Choice], section: str) -> Iterator[str]:
    """A part for each item that the section's list may hold."""
    for name, item in root.variants.items():
        own = [field for field in dataclasses.fields(item) if field.name != root.picked_by]
        yield f"### {section}.{name}\n\n{_table(item, f'{section}.{name}', own)}"


def _variants(root: type[Choice], key: str, *, depth: int) -> Iterator[str]:
    """A part for each variant, with the fields that it adds to the root's; one for all names that share a dataclass."""
    shared = {field.name for field in dataclasses.fields(root)}
    names: dict[type[Choice], list[str]] = {}
    for name, variant in root.variants.items():
        names.setdefault(variant, []).append(f'`"{name}"`')
    for variant, called in names.items():
        added = [field for field in dataclasses.fields(variant) if field.name not in shared]
        yield f"{'#' * depth} {key}.{root.picked_by} = {' or '.join(called)}\n\n{_table(variant, key, added)}"
        if is_root(variant):
            yield from _variants(variant, key, depth=depth + 1)


def _table(owner: type, key: str, shown: Sequence[dataclasses.Field[object]]) -> str:
    """The docstring of a dataclass and the table of its fields ``shown``, if any."""
    lines = [_code(purpose(owner))]
    if shown:
        lines += ["", "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    documented = documented_fields(owner)
    defaults = {field.name: _default(field) for field in shown}
    for field in shown:
        annotation, text = documented[field.name]
        default = inline_toml(defaults[field.name])
        kind = _names(owner) if is_root(owner) and field.name == owner.picked_by else _type(annotation)
        lines.append(f"| `{key}.{key_of(field.name)}` | {kind} | `{default}` | {_cell(text)} |")
    return "\n".join(lines)


def _default(field: dataclasses.Field[object]) -> object:
    """Of a list of named items, their tables without what is a default of theirs."""
    if field.default_factory is dataclasses.MISSING:
        return field.default
    value = field.default_factory()
    items = value if isinstance(value, tuple) else ()
    return [{item.picked_by: getattr(item, item.picked_by)} for item in items if isinstance(item, Choice)] or value


def _names(root: type[Choice]) -> str:
    """What a choice can pick."""
    return ", ".join(f"`{name}`" for name in root.variants)


def up_to_date(document: str) -> str:
    """``document``, the text of docs/config.md, with its tables made anew.

    Raises:
        ValueError: it has lost the line that the tables come after.
    """
    head, begin, _ = document.partition(BEGIN)
    if not begin:
        raise ValueError(f"{DOCUMENT.name} has lost its line {BEGIN.strip()}; put it before the first table")
    return f"{head}{BEGIN}\n{tables()}"


def _type(annotation: ast.expr) -> str:
    """A type as it is written in a recipe."""
    if isinstance(annotation, ast.Subscript):
        kind = ast.unparse(annotation.value)
        items = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if kind == "Annotated":
            return _type(items[0])
        if kind == "Literal":
            return ", ".join(f"`{ast.literal_eval(item)}`" for item in items)
        return "table" if kind == "dict" else f"list of {_type(items[0])}s"
    if ast.unparse(annotation) not in ("str", "UserPath", "int", "float", "bool"):
        return "table"
    return {"str": "text", "UserPath": "path", "int": "integer", "float": "number", "bool": "true, false"}[
        ast.unparse(annotation)
    ]


def _cell(text: str) -> str:
    return _code(" ".join(text.split())).replace("|", r"\|")


def _code(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text)


if __name__ == "__main__":
    DOCUMENT.write_text(up_to_date(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
