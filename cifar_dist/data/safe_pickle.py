"""Pickles of plain data, read by a reader that has nothing to execute them with.

A pickle is a program. This is a machine for the part of that language which data is written in: numbers, strings,
lists, tuples, dicts and numpy arrays. A name such as ``os.system`` is never looked up, only compared with the
few names by which numpy writes an array, and those are carried out here, without numpy's own unpickling.

Python's Unpickler with a restricted ``find_class`` would not do: a dozen bytes make it allocate gigabytes (a memo
index of 2**31) or hash a nested tuple for years (a dict key), and objects that it may call, it may also alter.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable

from cifar_dist.data.pickled_array import Array, Dtype, RefusedError, as_text, from_buffer, scalar
from cifar_dist.errors import UserError

MAX_BYTES = 1 << 30
MAX_OPERATIONS = 20_000_000
"""Pickle operations; one costs about a hundred bytes of memory. A list of a million labels takes a million."""


class _Name:
    """A global that was named, and what is done here where it is called."""

    def __init__(self, module: str, name: str) -> None:
        known = _FUNCTIONS.get((_OTHER_NAMES.get(module, module), name))
        if known is None:
            shown = ascii(f"{module}.{name}"[:80])[1:-1]  # safe to print, whatever it is
            raise RefusedError(f"it asks for {shown}, which data never needs")
        self.function = known


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
            raise RefusedError(f"it has {len(data):,} bytes, more than the {MAX_BYTES:,} that are read")
        top = _Machine(data).run()
        if not isinstance(top, dict):
            raise RefusedError(f"it holds a {type(top).__name__.lstrip('_').lower()} where a dictionary is expected")
        return {
            as_text(key): value.value if isinstance(value, Array) else value
            for key, value in top.items()
            if isinstance(key, str | bytes)
        }
    except RefusedError as error:
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
                raise RefusedError(f"it takes more than {MAX_OPERATIONS:,} operations")
            name = opcode.name
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _PYTHON_2_STRINGS:
                self._stack.append(as_text(argument).encode("latin-1"))
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _MEMO_PUT:
                self._memo[argument if isinstance(argument, int) else len(self._memo)] = self._stack[-1]
            elif name in _MEMO_GET:
                assert isinstance(argument, int)
                self._stack.append(self._memo[argument])
            elif name == "STOP":
                return self._pop()
            elif name not in ("PROTO", "FRAME"):
                step = _STEPS.get(name)
                if step is None:
                    raise RefusedError(f"it uses the pickle operation {name}, which data never needs")
                step(self, argument)
        raise RefusedError("it has no end")

    def _pop(self) -> object:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise RefusedError("it takes more from its stack than it put there")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[object]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def mark(self, _: object) -> None:
        self._marks.append(len(self._stack))

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
            raise RefusedError("it appends to what is no list")
        target.extend(items)

    def _set_items(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedError("it sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int):  # the hash of a nested tuple can take for ever
                raise RefusedError(f"it has a dictionary key of type {type(key).__name__.lstrip('_').lower()}")
            target[key] = value

    def name(self, argument: object) -> None:
        module, _, name = as_text(argument).partition(" ")
        self._stack.append(_Name(module, name))

    def stack_name(self, _: object) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(_Name(as_text(module), as_text(name)))

    def reduce(self, _: object) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise RefusedError("it calls what is no function")
        self._stack.append(function.function(self, *arguments))

    def build(self, _: object) -> None:
        state, target = self._pop(), self._stack[-1]
        if not isinstance(target, Array | Dtype):
            raise RefusedError("it sets the state of what is no array")
        target.set_state(state)

    def encode(self, text: object, encoding: object) -> bytes:
        """``_codecs.encode``, by which Python 3 writes bytes in the old protocols."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise RefusedError("it encodes text as data never is")
        self._spend(len(text))
        return text.encode("latin-1")

    def as_bytes(self, *arguments: object) -> bytes:
        """``bytes`` and ``bytearray`` of bytes or a string: never of a number, which would be a size."""
        match arguments:
            case []:
                return b""
            case [bytes() as data]:
                self._spend(len(data))
                return data
            case [text, encoding]:
                return self.encode(text, encoding)
        raise RefusedError("it makes bytes as data never are")

    def _spend(self, count: int) -> None:
        """No more bytes are made than the pickle has: one string in the memo could be encoded again and again."""
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise RefusedError("it makes more bytes than it has")


def _no_call(*_: object) -> object:
    raise RefusedError("it makes an array as data never does")


# numpy 2 and Python 2 call the same modules by other names.
_OTHER_NAMES = {
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "__builtin__": "builtins",
}

_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda machine, *_: Array(),
    ("numpy.core.multiarray", "scalar"): lambda machine, *arguments: scalar(*arguments),
    ("numpy.core.numeric", "_frombuffer"): lambda machine, *arguments: from_buffer(*arguments),
    ("numpy", "ndarray"): _no_call,  # only named, as the argument of _reconstruct
    ("numpy", "dtype"): lambda machine, code, *_: Dtype(code),
    ("_codecs", "encode"): _Machine.encode,
    ("builtins", "bytes"): _Machine.as_bytes,
    ("builtins", "bytearray"): _Machine.as_bytes,
}

_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_PYTHON_2_STRINGS = frozenset(["STRING", "BINSTRING", "SHORT_BINSTRING"])
_MEMO_PUT = frozenset(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"])
_MEMO_GET = frozenset(["GET", "BINGET", "LONG_BINGET"])
_STEPS: dict[str, Callable[[_Machine, object], None]] = {
    "MARK": _Machine.mark,
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
