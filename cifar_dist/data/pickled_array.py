"""Rebuild NumPy arrays from what a pickle describes, without calling anything the pickle names."""

from __future__ import annotations

import math
import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_MAX_SIDE = 1 << 30  # the product of larger integers can take hours
_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


class RefusedError(Exception):
    """The pickle is refused; the message is the end of a sentence about the file."""


class Dtype:
    """A NumPy dtype under construction: the constructor sets kind and size, the state sets the byte order."""

    def __init__(self, code: object) -> None:
        text = as_text(code)
        if not _DTYPE.fullmatch(text):
            raise RefusedError(f"it contains an array of type {text[:20]!r}, and only numeric arrays are supported")
        self.code = text.lstrip("<>=|")
        self.order: Literal["<", ">", "=", "|"] = "="

    def set_state(self, state: object) -> None:
        order = as_text(state[1]) if isinstance(state, tuple) and len(state) > 1 else ""
        if order not in ("<", ">", "=", "|"):
            raise RefusedError("its array types are corrupt")
        self.order = order  # type: ignore[assignment]

    def to_numpy(self) -> np.dtype[np.generic]:
        return np.dtype(self.code).newbyteorder(self.order)


class Array:
    """A NumPy array under construction; its state sets shape, type and data."""

    def __init__(self) -> None:
        self.value: NDArray[np.generic] = np.empty(0, np.uint8)

    def set_state(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise RefusedError("its arrays are corrupt")
        self.value = as_array(state[4], state[2], state[1], "F" if state[3] else "C")


def as_text(value: object) -> str:
    """Return a string, whether Python 2 or 3 pickled it."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise RefusedError(f"it has {describe_kind(value)} where text is expected")
    return value


def describe_kind(value: object) -> str:
    """Name the type of a value that is not expected, with its article."""
    if value is None:
        return "None"
    kind = type(value).__name__.lstrip("_").lower()
    return f"{'an' if kind.startswith(tuple('aeiou')) else 'a'} {kind}"


def as_array(data: object, dtype: object, shape: object, order: object, axes: object = None) -> NDArray[np.generic]:
    """Return a view of ``data``, so an array never takes more memory than the pickle has bytes."""
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, Dtype) or not isinstance(shape, tuple):
        raise RefusedError("its arrays are corrupt")
    if len(shape) > 8 or not all(type(side) is int and 0 <= side <= _MAX_SIDE for side in shape):
        raise RefusedError("it contains an array of an impossible shape")
    if math.prod(shape) * dtype.to_numpy().itemsize != len(data):
        raise RefusedError(f"it contains an array of {math.prod(shape):,} numbers in {len(data):,} bytes")
    flat = np.frombuffer(data, dtype.to_numpy()) if len(data) else np.empty(0, dtype.to_numpy())
    if order == "K" and isinstance(axes, tuple) and all(type(axis) is int for axis in axes):
        return flat.reshape(shape).transpose(axes)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def from_buffer(data: object, dtype: object, shape: object, order: object, axes: object = None) -> Array:
    """Stand-in for ``numpy.core.numeric._frombuffer``, which protocol 5 uses for arrays."""
    result = Array()
    result.value = as_array(data, dtype, shape, order, axes)
    return result


def scalar(dtype: object, data: object) -> object:
    """Stand-in for ``numpy.core.multiarray.scalar``; returns a Python number."""
    return as_array(data, dtype, (), "C").item()
