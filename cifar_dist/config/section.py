"""The base class of the config's sections, and their checks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, ValidationError
    from pydantic_core import CoreSchema

LARGEST: Final = 2**31 - 1
"""The largest integer of a setting; torch, NCCL and timers refuse larger ones where nobody would look for the cause."""


def require(condition: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_at_least(settings: object, **least: Literal[0, 1]) -> None:
    """Raise ValueError for the first of these settings, by the names of their fields, that is below 0 or 1."""
    for field, bound in least.items():
        value = getattr(settings, field)
        require(value >= bound, f"{field} {value} must {'be at least 1' if bound else 'not be negative'}")


def require_probability(p: float) -> None:
    """Raise ValueError unless ``p`` is in [0, 1]."""
    require(0 <= p <= 1, f"p {p} is a probability and must be in [0, 1]")


def expand_existing(path: str | Path) -> Path:
    """Replace ``~`` and environment variables in the path of what must exist.

    Of a user who does not exist, and of a variable that is not set, they stay as they are: no such path exists.
    """
    return Path(os.path.expandvars(os.path.expanduser(path)))


def expand_path(path: str) -> str:
    """Replace ``~`` and environment variables in a path, which no shell does in a file, after ``=`` or in quotes.

    Raises:
        ValueError: it names a variable that is not set; without this, a folder called ``$SCRATCH`` would be created.
    """
    expanded = os.path.expandvars(os.path.expanduser(path))
    unset = re.search(r"\$(?:\w+|\{\w+\})", expanded)
    require(unset is None, f"the variable {unset and unset[0]} in {path!r} is not set; set it, or write the path")
    return expanded


class _Expanded:
    """Tells pydantic to call :func:`expand_path`."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import PydanticCustomError, core_schema

        def expand(path: str) -> str:
            try:
                return expand_path(path)
            except ValueError as error:
                raise PydanticCustomError("path", "{error}", {"error": str(error)}) from None

        return core_schema.no_info_after_validator_function(expand, handler(source))


UserPath = Annotated[str, _Expanded()]


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

    if TYPE_CHECKING:  # each section is a dataclass
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    __pydantic_config__: ClassVar = {
        "extra": "forbid",
        "coerce_numbers_to_str": True,
        "allow_inf_nan": False,
        "alias_generator": key_of,
    }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_wrap_validator_function(cls._read_numbers, handler(source))

    @classmethod
    def _read_numbers(cls, settings: object, read: Callable[[object], object]) -> object:
        """Read the settings, but neither true as the number 1 nor integers that are too large."""
        from pydantic import ValidationError

        defaults = {key_of(field.name): field.default for field in dataclasses.fields(cls)}
        for key, value in settings.items() if isinstance(settings, Mapping) else ():
            takes_numbers = type(defaults.get(key)) in (int, float, tuple)
            if takes_numbers and any(isinstance(item, bool) for item in _items(value)):
                raise ValueError(
                    f"{key} {json.dumps(value)} must be {'numbers' if isinstance(value, list) else 'a number'}"
                )
        try:
            section = read(settings)
        except ValidationError as error:
            _refuse_count(error, settings, defaults)
            raise
        for key in defaults:
            for number in _items(getattr(section, key, None)):
                is_small = not isinstance(number, int) or abs(number) <= LARGEST
                require(is_small, f"{key} {number} must be at most {LARGEST}")
        return section


def _refuse_count(error: ValidationError, settings: object, defaults: Mapping[str, object]) -> None:
    """Raise ValueError if ``error`` is of a pair, or another tuple of a fixed length, with too few or many numbers."""
    first = error.errors()[0]
    if (first["type"], len(first["loc"])) not in (("too_long", 1), ("missing", 2)) or not isinstance(settings, Mapping):
        return
    key = str(first["loc"][0])
    value, default = settings[key], defaults.get(key)
    if isinstance(default, tuple):
        given, example = ", ".join(map(str, value)), ",".join(map(str, default))
        raise ValueError(f"{key} [{given}] must be {len(default)} numbers, such as {example}") from None


def _items(value: object) -> Iterator[object]:
    yield from value if isinstance(value, list | tuple) else [value]
