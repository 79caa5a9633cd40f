"""A model's options are checked against the type hints of its builder's keyword-only arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from cifar_dist.config import OptionValue
from cifar_dist.errors import UserError, nearest

Size = Annotated[int, Field(ge=1, le=4096)]
"""A width or a number of blocks. Bounded, so that a slip of the finger is not an out-of-memory error."""
SizeOrZero = Annotated[int, Field(ge=0, le=4096)]
Kernel = Literal[1, 3, 5, 7]
"""Side of an odd kernel, padded so that the map keeps its size."""
Probability = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def checked(builder: Callable[..., object], options: Mapping[str, OptionValue], model: str) -> dict[str, object]:
    """The options as the builder's types: lists become tuples, whole numbers floats; nothing else is converted.

    Raises:
        UserError: an option that the builder does not have, or a value that is not of its type.
    """
    known = {
        parameter.name
        for parameter in inspect.signature(builder).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    hints = _hints(builder, model)
    values: dict[str, object] = {}
    for option, value in options.items():
        if option not in known:
            advice = nearest(option, known) if known else "it has no options"
            raise UserError(f"model.options: {model} has no option '{option}'; {advice}")
        try:
            values[option] = TypeAdapter(hints.get(option, object)).validate_python(_as_tuples(value), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "".join(f"[{index}]" for index in first["loc"])
            what = first["msg"].replace("tuple", "list")  # what a recipe calls it
            raise UserError(f"model.options.{option}{place} of {model} is {value!r}: {what}") from None
    return values


def _hints(builder: Callable[..., object], model: str) -> dict[str, type]:
    """The types of the builder's arguments; a class is built by its ``__init__``."""
    try:
        return get_type_hints(builder.__init__ if inspect.isclass(builder) else builder, include_extras=True)
    except NameError as error:
        raise UserError(f"model.name: the type hints of {model} cannot be read: {error}") from None


def _as_tuples(value: object) -> object:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value
