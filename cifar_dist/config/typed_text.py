"""A value as a command line has it: a text, in which commas may separate the items of a list."""

from __future__ import annotations


class TypedText(str):
    """The text of a setting whose type is known only when its variant is: a plug-in may declare it."""

    __slots__ = ()


def split_commas(text: str) -> list[str]:
    """Return the items of a list, ``0.9,0.99``."""
    return [item.strip() for item in text.split(",") if item.strip()]
