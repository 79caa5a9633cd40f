"""TOML: a file or text parsed, and a value as text on one line."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from cifar_dist.errors import UserError

_MAX_NESTING: Final = 50


class TomlError(UserError):
    """A file that can be read, and whose text is not TOML."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Editors of Windows begin it with a byte order mark.

    Raises:
        TomlError: its text is not UTF-8, or :func:`parse_toml` refuses it.
        FileNotFoundError: it does not exist; callers say what to name instead.
        UserError: it cannot be read.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TomlError(f"{path} is not a UTF-8 text; save it again as UTF-8") from None
    except ValueError as error:
        raise TomlError(f"{path} cannot be read as TOML: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML that is not nested too deeply.

    Raises:
        ValueError: it is not valid TOML, or is nested too deeply for those who walk it; the message is one line.
    """
    too_deep = f"it is nested more than {_MAX_NESTING} deep"
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level: list[object] = [tree]
    for _ in range(_MAX_NESTING):
        level = [inner for item in level for inner in _items(item)]
    if level:
        raise ValueError(too_deep)
    return tree


def _items(value: object) -> Iterable[object]:
    """The items of a table or list; none of anything else."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def inline_toml(value: object) -> str:
    """Format a value as TOML on one line."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{_bare(str(key))} = {inline_toml(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(inline_toml, value))}]"
    # A JSON string is a TOML string, except for one character that TOML requires escaped.
    return json.dumps(value, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")


def as_typed(value: object) -> str:
    """Format a value as one types it after its setting: text as it is, anything else as TOML."""
    return value if isinstance(value, str) else inline_toml(value)


def typed_value(key: str, value: object) -> str:
    """Format a value so that the command line reads it as the same value of the setting ``key``."""
    # The options of a model have no declared type: of them "3" is not 3.
    return inline_toml(value) if key.startswith("model.options.") else as_typed(value)


def option(key: str, value: object) -> str:
    """Format the words that set a value, for a shell: ``--optim.lr 0.1``."""
    return f"--{key} {shlex.quote(typed_value(key, value))}"


def _bare(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else inline_toml(key)
