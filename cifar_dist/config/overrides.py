"""Settings on a command line, ``--section.field VALUE``, as values by dotted key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args, get_origin, get_type_hints

from cifar_dist.config import Config
from cifar_dist.config.choice import field_names, is_root, leaves
from cifar_dist.config.keys import all_keys, check_keys, list_of_items
from cifar_dist.config.named_items import item_root
from cifar_dist.config.section import BooleanMeans, key_of
from cifar_dist.config.toml_text import parse_toml
from cifar_dist.config.tree import Tree
from cifar_dist.errors import UserError


def parse_overrides(words: Sequence[str]) -> Tree:
    """Parse ``--section.field VALUE`` pairs into values by dotted key. Lists and tables use TOML syntax: ``[64, 128]``.

    Raises:
        UserError: an argument is not an override, or a key is not a setting.
    """
    found: Tree = {}
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("--"):
            raise UserError(f"unexpected '{word}'; settings are written --section.field VALUE")
        key, equals, text = word[2:].partition("=")
        if not equals and position + 1 < len(words) and not words[position + 1].startswith("--"):
            position += 1
            text, equals = words[position], "="
        parts = key.replace("-", "_").split(".")
        if "" in parts:
            raise UserError(f"--{key} has a dot too many; settings are written --section.field VALUE")
        if len(parts) == 1 and key in field_names(Config) and text.startswith("{"):
            raise UserError(f"--{key} is a section and not replaced as a whole; set its keys, as --{key}.KEY VALUE")
        right = ".".join((parts[0], *parts[2:]))
        if len(parts) == 4 and parts[1] == list_of_items(parts[0]) and right in all_keys():
            raise UserError(f"the command line: unknown setting --{key}; did you mean '--{right}'?")
        types = _types_of(parts)
        if not equals and types and not any(map(_takes_true, types)):
            raise UserError(f"--{key} requires a value: --{key} VALUE")
        nested: Any = text if equals else "true"
        if nested.startswith(("[", "{")):
            try:
                nested = parse_toml(f"value = {nested}")["value"]
            except ValueError:
                raise UserError(f'--{key}: {text!r} is not a TOML list; for example --{key} "[64, 128]"') from None
        elif parts[:2] == ["model", "options"]:
            nested = _scalar(nested)
        elif types and all(get_origin(kind) is tuple for kind in types):
            nested = [item.strip() for item in nested.split(",") if item.strip()]
        value = nested
        for part in reversed(parts):
            nested = {part: nested}
        check_keys(nested, where="the command line", prefix="--")
        found[".".join(parts)] = value
        position += 1
    return found


def _types_of(parts: Sequence[str]) -> list[Any]:
    """Return the types of a setting, one for each variant that has it; empty if no type is declared."""
    section = get_type_hints(Config).get(parts[0])
    if section is None or len(parts) < 2:
        return []
    owners: list[type] = [section, *(leaf for _, leaf in leaves(section))] if is_root(section) else [section]
    if len(parts) == 3 and section.named_items:
        owners = [item_root(section).variants[parts[1]]] if parts[1] in item_root(section).variants else []
    elif len(parts) == 3 or parts[1] == section.named_items:
        return []
    hints = [get_type_hints(owner, include_extras=True) for owner in owners if parts[-1] in field_names(owner)]
    return [hint for found in hints for name, hint in found.items() if key_of(name) == parts[-1]]


def _takes_true(kind: Any) -> bool:
    """Whether true is a value of a type, so that ``--section.field`` alone means something."""
    return any(one is bool or isinstance(one, BooleanMeans) for one in (kind, *get_args(kind)))


def _scalar(text: str) -> object:
    """Parse a value whose type no field declares (a model's option) as TOML, or else as a string."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text
