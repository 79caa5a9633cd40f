"""The base class of the config's sections, and their checks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, ClassVar

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


def require(condition: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_probability(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is in [0, 1]."""
    require(0 <= value <= 1, f"{name} {value} is a probability and must be in [0, 1]")


class _HomeExpanded:
    """Tells pydantic to expand the ``~`` of a path, for which a shell does not care in a file or after ``=``."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(os.path.expanduser, handler(source))


UserPath = Annotated[str, _HomeExpanded()]


class BooleanMeans:
    """Tells pydantic to accept true and false for two of a setting's words.

    Args:
        yes, no: the words that they stand for.
    """

    def __init__(self, *, yes: str, no: str) -> None:
        self._words = {True: yes, False: no, "true": yes, "false": no}

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def _read(self, value: object) -> object:
        return self._words.get(value, value) if isinstance(value, bool | str) else value


def key_of(field: str) -> str:
    """Return the key of a field: its name, without the underscore that keeps ``from_`` from being a Python keyword."""
    return field.removesuffix("_")


class Section:
    """Base class of a section, which pydantic validates.

    Attributes:
        named_items: the field, if any, whose items dotted keys may set, see :mod:`.named_items`.
    """

    named_items: ClassVar[str] = ""

    __pydantic_config__: ClassVar = {
        "extra": "forbid",
        "coerce_numbers_to_str": True,
        "allow_inf_nan": False,
        "alias_generator": key_of,
    }
