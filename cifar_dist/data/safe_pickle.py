"""Pickles of plain data, read by a reader that has nothing to execute them with.

A pickle is a program. This is a machine for the part of that language which data is written in: numbers, strings,
lists, tuples, dicts and numpy arrays. A name such as ``os.system`` is never looked up, only compared with the
few names by which numpy writes an array, and those are carried out here, without numpy's own unpickling.

Python's Unpickler with a restricted ``find_class`` would not do: a dozen bytes make it allocate gigabytes (a memo
index of 2**31) or hash a nested tuple for years (a dict key), and objects that it may call, it may also alter.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cifar_dist.errors import UserError

MAX_BYTES = 1 << 30
MAX_OPERATIONS = 20_000_000
"""Pickle operations; one costs about a hundred bytes of memory. A list of a million labels takes a million."""

_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


class _Refused(Exception):
    """Says what is wrong, as the end of a sentence about the file."""


class _Name:
    """A global that was named; an object of its own, so that it is equal to nothing else in the pickle."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Dtype:
    """A numpy dtype in the making: the constructor gives kind and size, the state the byte order."""

    def __init__(self, code: object) -> None:
        text = _text(code)
        if not _DTYPE.fullmatch(text):
            raise _Refused(f"it holds an array of type {text[:20]!r}; only numbers are read")
        self.code = text.lstrip("<>=|")
        self.order: Literal["<", ">", "=", "|"] = "="

    def set_state(self, state: object) -> None:
        order = _text(state[1]) if isinstance(state, tuple) and len(state) > 1 else ""
        if order not in ("<", ">", "=", "|"):
            raise _Refused("its array types are damaged")
        self.order = order  # type: ignore[assignment]

    def get(self) -> np.dtype[np.generic]:
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """A numpy array in the making; its state gives shape, type and bytes."""

    def __init__(self) -> None:
        self.value: NDArray[np.generic] = np.empty(0, np.uint8)

    def set_state(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise _Refused("its arrays are damaged")
        self.value = _array(state[4], state[2], state[1], "F" if state[3] else "C")


def read_pickle(data: bytes, where: str) -> dict[str, object]:
    """The dictionary that a pickle holds; string keys come as str, whichever Python wrote them.

    Values are None, bool, int, float, str, bytes, list, tuple, dict or a numpy array of numbers; strings that
    Python 2 wrote are bytes.

    Args:
        data: the pickle, of any protocol.
        where: what begins an error message: the file.

    Raises:
        UserError: damaged, not a dictionary, too large, or it asks for anything that data does not need.
    """
    try:
        if len(data) > MAX_BYTES:
            raise _Refused(f"it has {len(data):,} bytes, more than the {MAX_BYTES:,} that are read")
        top = _Machine(data).run()
        if not isinstance(top, dict):
            raise _Refused(f"it holds a {type(top).__name__.lstrip('_').lower()} where a dictionary is expected")
        return {
            _text(key): value.value if isinstance(value, _Array) else value
            for key, value in top.items()
            if isinstance(key, str | bytes)
        }
    except _Refused as error:
        raise UserError(f"{where}: {error}; not read") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        what = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{where} is not a whole pickle ({what}); fetch or make it again") from None


class _Machine:
    """The pickle machine: a stack with marks, and a memo."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        self._bytes_left = len(data)

    def run(self) -> object:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self._data)):
            if count == MAX_OPERATIONS:
                raise _Refused(f"it takes more than {MAX_OPERATIONS:,} operations")
            name = opcode.name
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _PYTHON_2_STRINGS:
                self._stack.append(argument.encode("latin-1"))
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _MEMO_PUT:
                self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1]
            elif name in _MEMO_GET:
                self._stack.append(self._memo[argument])
            elif name == "STOP":
                return self._pop()
            elif name not in ("PROTO", "FRAME"):
                step = _STEPS.get(name)
                if step is None:
                    raise _Refused(f"it uses the pickle operation {name}, which data never needs")
                step(self, argument)
        raise _Refused("it has no end")

    def _pop(self) -> object:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise _Refused("it takes more from its stack than it put there")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[object]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def mark(self, _: object) -> None:
        self._marks.append(len(self._stack))

    def pop(self, _: object) -> None:
        self._pop()

    def pop_mark(self, _: object) -> None:
        self._pop_to_mark()

    def duplicate(self, _: object) -> None:
        self._stack.append(self._stack[-1])

    def tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def tuple_to_mark(self, _: object) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def list_to_mark(self, _: object) -> None:
        self._stack.append(self._pop_to_mark())

    def dict_to_mark(self, _: object) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set_items(items)

    def append(self, _: object) -> None:
        self._extend([self._pop()])

    def appends(self, _: object) -> None:
        self._extend(self._pop_to_mark())

    def set_item(self, _: object) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def set_items(self, _: object) -> None:
        self._set_items(self._pop_to_mark())

    def _extend(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise _Refused("it appends to what is no list")
        target.extend(items)

    def _set_items(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise _Refused("it sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int):  # the hash of a nested tuple can take for ever
                raise _Refused(f"it has a dictionary key of type {type(key).__name__.lstrip('_').lower()}")
            target[key] = value

    def name(self, argument: object) -> None:
        module, _, name = _text(argument).partition(" ")
        self._stack.append(_Name(module, name))

    def stack_name(self, _: object) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(_Name(_text(module), _text(name)))

    def reduce(self, _: object) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _Refused("it calls what is no function")
        known = _FUNCTIONS.get((_module(function.module), function.name))
        if known is None:
            raise _Refused(f"it asks for {_shown(function)}, which data never needs")
        self._stack.append(known(self, *arguments))

    def build(self, _: object) -> None:
        state, target = self._pop(), self._stack[-1]
        if not isinstance(target, _Array | _Dtype):
            raise _Refused("it sets the state of what is no array")
        target.set_state(state)

    def encode(self, text: object, encoding: object = "utf-8") -> bytes:
        """``_codecs.encode``, by which Python 3 writes bytes in the old protocols."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise _Refused("it encodes text as data never is")
        self._bytes_left -= len(text)
        if self._bytes_left < 0:  # a string in the memo can be encoded again and again
            raise _Refused("it makes more bytes than it has")
        return text.encode("latin-1")

    def bytes(self, *arguments: object) -> bytes:
        """``bytes()``, or ``bytearray`` of a string: never of a number, which would be a size."""
        return self.encode(*arguments) if arguments else b""


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise _Refused(f"it has a {type(value).__name__.lstrip('_').lower()} where text is expected")
    return value


def _array(data: object, dtype: object, shape: object, order: object, axes: object = None) -> NDArray[np.generic]:
    """A view of ``data``: no memory is taken that the pickle did not bring."""
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
        raise _Refused("its arrays are damaged")
    if len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise _Refused("it holds an array of impossible shape")
    if math.prod(shape) * dtype.get().itemsize != len(data):
        raise _Refused(f"it holds an array of {math.prod(shape):,} numbers in {len(data):,} bytes")
    flat = np.frombuffer(data, dtype.get()) if len(data) else np.empty(0, dtype.get())
    if order == "K" and isinstance(axes, tuple) and all(type(axis) is int for axis in axes):
        return flat.reshape(shape).transpose(axes)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(data: object, dtype: object, shape: object, order: object, axes: object = None) -> _Array:
    array = _Array()
    array.value = _array(data, dtype, shape, order, axes)
    return array


def _scalar(dtype: object, data: object) -> object:
    return _array(data, dtype, (), "C").item()


def _shown(name: _Name) -> str:
    """``os.system``, or what is safe to print of it."""
    return ascii(f"{name.module}.{name.name}"[:80])[1:-1]


def _module(name: str) -> str:
    """numpy 2 and Python 2 call the same modules by other names."""
    return {"numpy._core.multiarray": "numpy.core.multiarray", "numpy._core.numeric": "numpy.core.numeric"}.get(
        name, "builtins" if name == "__builtin__" else name
    )


_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda machine, *_: _Array(),
    ("numpy.core.multiarray", "scalar"): lambda machine, *arguments: _scalar(*arguments),
    ("numpy.core.numeric", "_frombuffer"): lambda machine, *arguments: _from_buffer(*arguments),
    ("numpy", "dtype"): lambda machine, code, *_: _Dtype(code),
    ("_codecs", "encode"): _Machine.encode,
    ("builtins", "bytes"): _Machine.bytes,
    ("builtins", "bytearray"): _Machine.bytes,
}

_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_PYTHON_2_STRINGS = frozenset(["STRING", "BINSTRING", "SHORT_BINSTRING"])
_MEMO_PUT = frozenset(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"])
_MEMO_GET = frozenset(["GET", "BINGET", "LONG_BINGET"])
_STEPS: dict[str, Callable[[_Machine, object], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_to_mark,
    "LIST": _Machine.list_to_mark,
    "DICT": _Machine.dict_to_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
