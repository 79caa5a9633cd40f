"""Settings on a command line, ``--section.field VALUE``, as values by dotted key."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Final, get_args, get_origin

from cifar_dist.config import Config
from cifar_dist.config.choice import field_names
from cifar_dist.config.keys import all_keys, check_keys, is_part_of, list_of_items, may_be_of_plugin, types_of
from cifar_dist.config.section import BooleanMeans
from cifar_dist.config.toml_text import parse_toml
from cifar_dist.config.tree import Tree, put
from cifar_dist.config.typed_text import TypedText, split_commas
from cifar_dist.errors import UserError

COMMAND_LINE: Final = "the command line"
"""Where a setting comes from, for errors."""


def parse_overrides(words: Sequence[str]) -> Tree:
    """Parse ``--section.field VALUE`` pairs into values by dotted key. Lists and tables use TOML syntax: ``[64, 128]``.

    The last of several that set the same wins: a list of transforms replaces what was set of one of them before.

    Raises:
        UserError: an argument is not an override, or a key is not a setting.
    """
    found: Tree = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(f"unexpected '{word}'; settings are written --section.field VALUE")
        typed, equals, text = word[2:].partition("=")
        if not equals and left and not left[0].startswith("--"):
            text, equals = left.pop(0), "="
        key = typed.replace("-", "_")
        _check_key(key, text)
        _check_encoding(key, text)
        types = types_of(key)
        if not equals and types and not any(map(_takes_true, types)):
            raise UserError(f"--{key} requires a value: --{key} VALUE")
        value = _parse_value(key, text if equals else "true", types)
        tree: Tree = {}
        put(tree, key, value)
        check_keys(tree, where=COMMAND_LINE, prefix="--")
        found = {before: value for before, value in found.items() if not is_part_of(before, key)} | {key: value}
    return found


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words into settings, which have a dot in their names, with their values, and all others."""
    settings: list[str] = []
    others: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, _ = word.partition("=")
        if not (word.startswith("--") and "." in name):
            others.append(word)
            continue
        settings.append(word)
        if left and not equals and not left[0].startswith("--"):
            settings.append(left.pop(0))
    return settings, others


def _check_key(key: str, text: str) -> None:
    """Refuse a key that cannot be one, before what it would be is searched for."""
    section, *below = key.split(".")
    if "" in (section, *below):
        raise UserError(f"--{key} has a dot too many; settings are written --section.field VALUE")
    if not below and section in field_names(Config) and text.startswith("{"):
        raise UserError(f"--{key} is a section and not replaced as a whole; set its keys, as --{key}.KEY VALUE")
    right = ".".join((section, *below[1:]))
    if len(below) == 3 and below[0] == list_of_items(section) and right in all_keys():
        raise UserError(f"{COMMAND_LINE}: unknown setting --{key}; did you mean '--{right}'?")


def _check_encoding(key: str, text: str) -> None:
    """Refuse a value that config.toml cannot hold: a path may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"--{key} '{text}' is not UTF-8, as config.toml must be; rename the file or folder") from None


def _parse_value(key: str, text: str, types: Sequence[object]) -> object:
    """Parse what was typed for a setting; ``types`` are those of :func:`types_of`."""
    if text.startswith(("[", "{")) and not (types and all(map(_is_text, types))):
        try:
            return parse_toml(f"value = {text}")["value"]
        except ValueError:
            raise UserError(f'--{key}: {text!r} is not a TOML list; for example --{key} "[64, 128]"') from None
    if key.startswith("model.options."):
        return _scalar(text)
    if may_be_of_plugin(key):
        return TypedText(text)
    if types and all(get_origin(kind) is tuple for kind in types):
        return split_commas(text)
    return text


def _is_text(kind: object) -> bool:
    return (get_args(kind)[0] if get_origin(kind) is Annotated else kind) is str


def _takes_true(kind: object) -> bool:
    """Whether true is a value of a type, so that ``--section.field`` alone means something."""
    return any(one is bool or isinstance(one, BooleanMeans) for one in (kind, *get_args(kind)))


def _scalar(text: str) -> object:
    """Parse a value whose type no field declares (a model's option) as TOML, ``64,128`` as a list, or as a string."""
    for written in (text, f"[{text}]" if "," in text else text):
        with contextlib.suppress(ValueError):
            return parse_toml(f"value = {written}")["value"]
    return text
