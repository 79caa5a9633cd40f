"""The base class of the config's sections, and their checks."""

from __future__ import annotations

from typing import ClassVar


def require(condition: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_probability(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is in [0, 1]."""
    require(0 <= value <= 1, f"{name} {value} is a probability and must be in [0, 1]")


class Section:
    """Base class of a section, which pydantic validates.

    Attributes:
        named_items: the field, if any, whose items dotted keys may set, see :mod:`.named_items`.
    """

    named_items: ClassVar[str] = ""

    __pydantic_config__: ClassVar = {"extra": "forbid", "coerce_numbers_to_str": True, "allow_inf_nan": False}
