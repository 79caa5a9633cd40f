"""What all sections of the config share."""

from __future__ import annotations

from typing import ClassVar


def require(condition: bool, message: str) -> None:
    """Raises:
    ValueError: ``message``, where the condition does not hold.
    """
    if not condition:
        raise ValueError(message)


def require_probability(name: str, value: float) -> None:
    """Raises:
    ValueError: ``value`` is not in [0, 1].
    """
    require(0 <= value <= 1, f"{name} {value} is a probability and must be in [0, 1]")


class Section:
    """How pydantic checks a section.

    Attributes:
        named_items: the field, if any, whose list of named items a key may reach into: see :mod:`.named_items`.
    """

    named_items: ClassVar[str] = ""

    __pydantic_config__: ClassVar = {"extra": "forbid", "coerce_numbers_to_str": True, "allow_inf_nan": False}
