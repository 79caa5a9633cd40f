"""Dotted keys into lists of named items: ``augment.crop.pad`` is ``pad`` of the transform ``crop``."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import get_args, get_type_hints

from cifar_dist.config.choice import Choice, field_names
from cifar_dist.config.section import Section
from cifar_dist.config.toml_text import option
from cifar_dist.config.tree import Tree
from cifar_dist.errors import UserError


def item_root(section: type[Section]) -> type[Choice]:
    """Return the choice that the items of a section's list belong to."""
    root: type[Choice] = get_args(get_type_hints(section)[section.named_items])[0]
    return root


def item_key(name: str) -> str:
    """Return an item's part of a dotted key: its name or, for a plug-in, the attribute's name."""
    return name.rpartition(":")[2]


def item_keys(items: Sequence[object], field: str) -> list[str]:
    """Return each item's part of a dotted key: ``crop``, or ``transforms[2]`` if several items share a name."""
    names = [item_key(str(item.get("name", ""))) if isinstance(item, dict) else "" for item in items]
    return [name if name and names.count(name) == 1 else f"{field}[{place}]" for place, name in enumerate(names)]


def settings_of_items(items: Sequence[Tree], field: str) -> Iterator[tuple[str, object]]:
    """Yield (key, value) of each setting in a list of tables, and under ``field`` the list of names."""
    yield field, [item["name"] for item in items]
    for owner, item in zip(item_keys(items, field), items, strict=True):
        yield from ((f"{owner}.{key}", value) for key, value in item.items() if key != "name")


def items_of_settings(settings: Mapping[str, object], key: str) -> list[Tree]:
    """Return the list of tables that :func:`settings_of_items` took apart.

    Args:
        settings: by dotted key.
        key: under which they have the list of names, such as ``augment.transforms``.
    """
    section, _, field = key.rpartition(".")
    names = settings[key]
    items: list[Tree] = [{"name": name} for name in names] if isinstance(names, Sequence) else []
    for owner, item in zip(item_keys(items, field), items, strict=True):
        start = f"{section}.{owner}."
        item |= {name.removeprefix(start): value for name, value in settings.items() if name.startswith(start)}
    return items


def merge_items(tree: Tree, owner: type, *, where: str, prefix: str = "") -> Tree:
    """Move the settings of single items in ``tree`` into the lists that contain the items.

    Args:
        tree: tree of sections.
        owner: the dataclass whose fields the sections are.
        where: source of the settings of single items, for errors.
        prefix: printed before keys in errors: ``--`` for a command line.

    Raises:
        UserError: an item is not in its list, or is in it more than once.
    """
    merged = dict(tree)
    hints = get_type_hints(owner)
    for field in fields(owner):
        section, table = hints[field.name], tree.get(field.name)
        if isinstance(table, dict) and issubclass(section, Section) and section.named_items:
            merged[field.name] = _merge(table, section, field.name, where, prefix)
    return merged


def _merge(table: Tree, section: type[Section], name: str, where: str, prefix: str) -> Tree:
    listed = section.named_items
    own = {key: value for key, value in table.items() if key in field_names(section)}
    single = {key: value for key, value in table.items() if key not in own}
    if not single:
        return table
    items = own.get(listed)
    if items is None:
        items = [dataclasses.asdict(item) for item in getattr(section(), listed)]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return own  # building the config reports it
    items = list(items)
    for key, settings in single.items():
        places = [place for place, item in enumerate(items) if item_key(str(item.get("name"))) == key]
        if len(places) != 1:
            raise UserError(f"{where}: {_refusal(f'{name}.', key, settings, items, section, prefix)}")
        items[places[0]] = {**items[places[0]], **settings}
    return {**own, listed: items}


def _refusal(
    path: str, key: str, settings: Mapping[str, object], items: list[Tree], section: type[Section], prefix: str
) -> str:
    listed = f"{path}{section.named_items}"
    present = [item_key(str(item.get("name"))) for item in items]
    variants = item_root(section).variants
    if key not in (*variants, *present):
        typed = ".".join((key, *list(settings)[:1]))
        known = [f"{name}.{field}" for name in variants for field in field_names(variants[name]) if field != "name"]
        near = difflib.get_close_matches(typed, known, n=1)
        right = f"did you mean '{prefix}{path}{near[0]}'?" if near else f"{section.named_items}: {', '.join(variants)}"
        return f"unknown setting {prefix}{path}{typed}; {right}"
    if key in present:
        return f"{listed} has {key} {present.count(key)} times; give the whole list: {_option(listed, items)}"
    return f"{listed} has no {key}; give the whole list with it: {_option(listed, [*items, {'name': key, **settings}])}"


def _option(key: str, items: list[Tree]) -> str:
    """Return the command-line option that sets a list of tables."""
    typed = [{field: _typed(value) for field, value in item.items()} for item in items]
    return option(key, typed)


def _typed(value: object) -> object:
    """Convert text that is a number, as on a command line, to that number."""
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?(0|[1-9]\d*)(\.\d+)?", value)
    return json.loads(str(value).removeprefix("+")) if is_number else value
