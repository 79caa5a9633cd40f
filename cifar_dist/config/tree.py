"""Settings as plain values: in nested tables, by dotted key, and as TOML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import tomli_w

from cifar_dist.config.section import Section, key_of
from cifar_dist.errors import UserError

if TYPE_CHECKING:
    from cifar_dist.config import Config

Tree = dict[str, Any]


def put(tree: Tree, key: str, value: object) -> None:
    """Set ``value`` at a dotted key.

    Raises:
        UserError: a part of the key before its last has a value of its own.
    """
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, 1):
        below: object = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            raise UserError(f"unknown setting --{key}; did you mean '--{'.'.join(parents[:depth])}'?")
        tree = below
    tree[last] = value


def flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value) of nested tables."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_tree(config: Config) -> Tree:
    """Convert a config to nested dictionaries of plain TOML values, without the settings that are None."""
    return _table(config)


def require_toml(section: Section) -> None:
    """Refuse a section with a value that a recipe cannot contain, as a plug-in's default may be.

    Raises:
        ValueError: the message begins with the key.
    """
    for key, value in _table(section).items():
        try:
            tomli_w.dumps({key: value})
        except TypeError:
            raise ValueError(
                f"{key} is {value!r}, which a recipe cannot contain; make it a number, a text, true or false, or a "
                "list or table of these"
            ) from None


def _table(section: object) -> Tree:
    """Convert a section, or all of them, to nested dictionaries.

    TOML has no null. A setting is None by default, which is read again where the key is missing.
    """

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    def by_key(items: list[tuple[str, Any]]) -> Tree:
        return {key_of(name): value for name, value in items if value is not None}

    assert dataclasses.is_dataclass(section)
    assert not isinstance(section, type)
    return {key: plain(value) for key, value in dataclasses.asdict(section, dict_factory=by_key).items()}


def to_toml(config: Config) -> str:
    """Format a config as a recipe file; loading that file returns the same config."""
    return tomli_w.dumps(to_tree(config))
