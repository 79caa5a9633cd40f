"""numpy arrays as a pickle describes them, rebuilt without calling what the pickle names."""

from __future__ import annotations

import math
import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


class RefusedError(Exception):
    """Says what is wrong, as the end of a sentence about the file."""


class Dtype:
    """A numpy dtype in the making: the constructor gives kind and size, the state the byte order."""

    def __init__(self, code: object) -> None:
        text = as_text(code)
        if not _DTYPE.fullmatch(text):
            raise RefusedError(f"it holds an array of type {text[:20]!r}; only numbers are read")
        self.code = text.lstrip("<>=|")
        self.order: Literal["<", ">", "=", "|"] = "="

    def set_state(self, state: object) -> None:
        order = as_text(state[1]) if isinstance(state, tuple) and len(state) > 1 else ""
        if order not in ("<", ">", "=", "|"):
            raise RefusedError("its array types are damaged")
        self.order = order  # type: ignore[assignment]

    def get(self) -> np.dtype[np.generic]:
        return np.dtype(self.code).newbyteorder(self.order)


class Array:
    """A numpy array in the making; its state gives shape, type and bytes."""

    def __init__(self) -> None:
        self.value: NDArray[np.generic] = np.empty(0, np.uint8)

    def set_state(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise RefusedError("its arrays are damaged")
        self.value = as_array(state[4], state[2], state[1], "F" if state[3] else "C")


def as_text(value: object) -> str:
    """A string, whichever Python wrote it."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise RefusedError(f"it has a {type(value).__name__.lstrip('_').lower()} where text is expected")
    return value


def as_array(data: object, dtype: object, shape: object, order: object, axes: object = None) -> NDArray[np.generic]:
    """A view of ``data``: no memory is taken that the pickle did not bring."""
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, Dtype) or not isinstance(shape, tuple):
        raise RefusedError("its arrays are damaged")
    if len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise RefusedError("it holds an array of impossible shape")
    if math.prod(shape) * dtype.get().itemsize != len(data):
        raise RefusedError(f"it holds an array of {math.prod(shape):,} numbers in {len(data):,} bytes")
    flat = np.frombuffer(data, dtype.get()) if len(data) else np.empty(0, dtype.get())
    if order == "K" and isinstance(axes, tuple) and all(type(axis) is int for axis in axes):
        return flat.reshape(shape).transpose(axes)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def from_buffer(data: object, dtype: object, shape: object, order: object, axes: object = None) -> Array:
    """``numpy.core.numeric._frombuffer``, by which protocol 5 writes an array."""
    result = Array()
    result.value = as_array(data, dtype, shape, order, axes)
    return result


def scalar(dtype: object, data: object) -> object:
    """``numpy.core.multiarray.scalar``, as a number of Python's."""
    return as_array(data, dtype, (), "C").item()
