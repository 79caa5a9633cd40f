"""What all sections of the config share."""

from __future__ import annotations

from typing import ClassVar


def require(condition: bool, message: str) -> None:
    """Raises:
    ValueError: ``message``, where the condition does not hold.
    """
    if not condition:
        raise ValueError(message)


class Section:
    """How pydantic checks a section."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "coerce_numbers_to_str": True, "allow_inf_nan": False}
