"""A value of a setting as text on one line."""

from __future__ import annotations

import json
import re


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


def _bare(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else inline_toml(key)
