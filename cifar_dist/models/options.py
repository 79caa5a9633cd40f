"""Check a model's options against the type hints of its builder's keyword-only arguments."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, get_type_hints

from pydantic import Field, PydanticUserError, TypeAdapter, ValidationError

from cifar_dist.config import OptionValue
from cifar_dist.errors import UserError, first_line, nearest

Size = Annotated[int, Field(ge=1, le=4096)]
"""A width or a number of blocks, bounded so that a typing error does not exhaust memory."""
SizeOrZero = Annotated[int, Field(ge=0, le=4096)]
Kernel = Literal[1, 3, 5, 7]
"""Side of an odd kernel, padded so that the feature map keeps its size."""
Probability = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def checked(builder: Callable[..., object], options: Mapping[str, OptionValue], model: str) -> dict[str, object]:
    """Convert options to the builder's types: lists to tuples where it has these or no type, and integers to floats.

    Raises:
        UserError: the builder does not have an option, or a value has the wrong type.
    """
    known = defaults(builder)
    hints = _hints(builder, model)
    values: dict[str, object] = {}
    for option, value in options.items():
        if option not in known:
            advice = nearest(option, known) if known else "it has no options"
            raise UserError(f"model.options: {model} has no option '{option}'; {advice}")
        try:
            values[option] = _read(value, hints[option]) if option in hints else _as_tuples(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "".join(f"[{index}]" for index in first["loc"])
            what = first["msg"].replace("valid array", "valid list").replace("Tuple", "List")  # as recipes call it
            raise UserError(f"model.options.{option}{place} of {model} is {value!r}: {what}") from None
        except PydanticUserError:
            problem = f"model.options.{option} of {model} has a type that a recipe cannot contain"
            raise UserError(f"{problem}; remove it, or set it in the code") from None
    return values


def defaults(builder: Callable[..., object]) -> dict[str, object]:
    """Return the options of a model, with their defaults."""
    parameters = inspect.signature(builder).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


def _hints(builder: Callable[..., object], model: str) -> dict[str, type]:
    """Return the types of the builder's arguments."""
    try:
        return get_type_hints(_hinted(builder), include_extras=True)
    except Exception as error:  # a hint may be any expression
        raise UserError(f"model.name: the type hints of {model} cannot be read: {first_line(error)}") from None


def _hinted(builder: Callable[..., object]) -> Callable[..., object]:
    """Return the function that has the type hints of a builder: ``__init__`` of a class, ``__call__`` of an object."""
    while isinstance(builder, functools.partial):
        builder = builder.func
    if inspect.isclass(builder):
        return builder.__init__
    return builder if inspect.isroutine(builder) else type(builder).__call__


def _read(value: OptionValue, hint: type) -> object:
    """Return a value as the type that a builder has for it."""
    # JSON, like TOML, has one kind of list, which is read as the type says: as lists, tuples, or one in the other.
    reader: TypeAdapter[object] = TypeAdapter(hint)
    return reader.validate_json(json.dumps(value), strict=True)


def _as_tuples(value: object) -> object:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value
