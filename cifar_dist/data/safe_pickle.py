"""Read pickles of plain data with an interpreter that cannot execute code.

A pickle is a program. This module interprets the subset of the language that data uses: numbers, strings, lists,
tuples, dicts and NumPy arrays. A name such as ``os.system`` is never imported; it is compared with the few names that
NumPy uses to pickle an array, and those are implemented here, without NumPy's own unpickling.

Python's Unpickler with a restricted ``find_class`` is not enough: a dozen bytes make it allocate gigabytes (a memo
index of 2**31) or hash a nested tuple for years (a dict key), and it can modify any object that it may call.
"""

from __future__ import annotations

import codecs
import io
import pickletools
from collections.abc import Callable, Iterator

from cifar_dist.data.pickled_array import Array, Dtype, RefusedError, as_text, describe_kind, from_buffer, scalar
from cifar_dist.errors import UserError

MAX_BYTES = 1 << 30
MAX_OPERATIONS = 20_000_000
"""Largest number of pickle operations, at about a hundred bytes each. A list of a million labels takes a million."""


class _Name:
    """A global that the pickle names, and the function here that implements it."""

    def __init__(self, module: str, name: str) -> None:
        known = _FUNCTIONS.get((_OTHER_NAMES.get(module, module), name))
        if known is None:
            shown = ascii(f"{module}.{name}"[:80])[1:-1]  # safe to print, whatever the pickle contains
            raise RefusedError(f"it requests {shown}, which plain data never requires")
        self.function = known


def read_pickle(data: bytes, where: str) -> dict[str, object]:
    """Read the dictionary in a pickle; string keys become str, whether Python 2 or 3 wrote them.

    Values are None, bool, int, float, str, bytes, list, tuple, dict or a numeric NumPy array; strings that Python 2
    wrote are bytes.

    Args:
        data: the pickle, in any protocol.
        where: prefix of error messages: the file.

    Raises:
        UserError: the pickle is corrupt, not a dictionary, too large, or requests anything but data.
    """
    for beginning, what in _OTHER_FORMATS.items():
        if data.startswith(beginning):
            raise UserError(f"{where} is not a pickle but {what}")
    try:
        if len(data) > MAX_BYTES:
            raise RefusedError(f"it has {len(data):,} bytes, and the limit is {MAX_BYTES:,}")
        top = _Machine(data).run()
        if not isinstance(top, dict):
            raise RefusedError(f"it contains {describe_kind(top)} instead of a dictionary")
        return {
            as_text(key): value.value if isinstance(value, Array) else value
            for key, value in top.items()
            if isinstance(key, str | bytes)
        }
    except RefusedError as error:
        raise UserError(f"{where}: {error}; pickle a plain dictionary, or save the arrays as .npz") from None
    except (ValueError, IndexError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        what = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{where} is not an intact pickle ({what}); download or create it again") from None


def _operations(data: bytes) -> Iterator[tuple[str, object]]:
    """Yield the operations of a pickle with their arguments.

    pickletools.genops does so too, but that of Python 3.11 refuses bytes beyond ASCII in the strings of protocol 0,
    which was Python 2's default.
    """
    stream = io.BytesIO(data)
    while code := stream.read(1):
        operation = _OPERATION_OF.get(code)
        if operation is None:
            raise ValueError(f"byte {stream.tell() - 1:,} is {code!r}, which is no operation")
        if operation.name == "STRING":
            yield operation.name, _python_2_literal(stream)
        else:
            yield operation.name, operation.arg.reader(stream) if operation.arg else None


def _python_2_literal(stream: io.BytesIO) -> bytes:
    r"""Read a line such as ``'\xff\n'``: a string as Python 2 prints it."""
    literal = stream.readline().removesuffix(b"\n")
    if len(literal) < 2 or literal[:1] not in (b"'", b'"') or literal[-1:] != literal[:1]:
        raise ValueError("a string in it has no quotes")
    return codecs.escape_decode(literal[1:-1])[0]


class _Machine:
    """The pickle virtual machine: a stack with marks, and a memo."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        self._bytes_left = len(data)

    def run(self) -> object:
        for count, (name, argument) in enumerate(_operations(self._data)):
            if count == MAX_OPERATIONS:
                raise RefusedError(f"it takes more than {MAX_OPERATIONS:,} operations")
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _PYTHON_2_STRINGS:
                self._stack.append(as_text(argument).encode("latin-1"))
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _MEMO_PUT:
                place = argument if isinstance(argument, int) else len(self._memo)
                _require_short_key(place)
                self._memo[place] = self._stack[-1]
            elif name in _MEMO_GET:
                assert isinstance(argument, int)
                if argument not in self._memo:
                    raise ValueError(f"it recalls object {argument}, which it has not stored")
                self._stack.append(self._memo[argument])
            elif name == "STOP":
                return self._pop()
            elif name not in ("PROTO", "FRAME"):
                operation = _OPERATIONS.get(name)
                if operation is None:
                    raise RefusedError(f"it uses the pickle operation {name}, which plain data never requires")
                operation(self, argument)
        raise ValueError("it ends before its STOP operation")

    def _pop(self) -> object:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise RefusedError("it pops more from its stack than it pushed")
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
            raise RefusedError("it appends to something other than a list")
        target.extend(items)

    def _set_items(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedError("it sets items of something other than a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int):  # hashing a nested tuple can take forever
                raise RefusedError(f"it has a dictionary key of type {type(key).__name__.lstrip('_').lower()}")
            _require_short_key(key)
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
            raise RefusedError("it calls something other than a function")
        self._stack.append(function.function(self, *arguments))

    def build(self, _: object) -> None:
        state, target = self._pop(), self._stack[-1]
        if not isinstance(target, Array | Dtype):
            raise RefusedError("it sets the state of something other than an array")
        target.set_state(state)

    def encode(self, text: object, encoding: object) -> bytes:
        """Stand-in for ``_codecs.encode``, which Python 3 uses for bytes in the old protocols."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise RefusedError("it encodes text in a way that plain data never requires")
        self._spend_bytes(len(text))
        return text.encode("latin-1")

    def as_bytes(self, *arguments: object) -> bytes:
        """Stand-in for ``bytes`` and ``bytearray``; refuses a number, which would be a size to allocate."""
        match arguments:
            case []:
                return b""
            case [bytes() as data]:
                self._spend_bytes(len(data))
                return data
            case [text, encoding]:
                return self.encode(text, encoding)
        raise RefusedError("it builds bytes in a way that plain data never requires")

    def _spend_bytes(self, count: int) -> None:
        """Limit the bytes built to the size of the pickle, because one string in the memo can be encoded repeatedly."""
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise RefusedError("it builds more bytes than it has")


def _require_short_key(key: object) -> None:
    """Refuse an integer of more than 64 bits: the multiples of 2**61 - 1 share one hash, so a dictionary takes days."""
    if isinstance(key, int) and not -(2**63) <= key < 2**64:
        raise RefusedError("it has a key of more than 64 bits")


def _refuse_call(*_: object) -> object:
    raise RefusedError("it builds an array in a way that plain data never requires")


# NumPy 2 and Python 2 use other names for the same modules.
_OTHER_NAMES = {
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "__builtin__": "builtins",
}

_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda machine, *_: Array(),
    ("numpy.core.multiarray", "scalar"): lambda machine, *arguments: scalar(*arguments),
    ("numpy.core.numeric", "_frombuffer"): lambda machine, *arguments: from_buffer(*arguments),
    ("numpy", "ndarray"): _refuse_call,  # named only as the argument of _reconstruct
    ("numpy", "dtype"): lambda machine, code, *_: Dtype(code),
    ("_codecs", "encode"): _Machine.encode,
    ("builtins", "bytes"): _Machine.as_bytes,
    ("builtins", "bytearray"): _Machine.as_bytes,
}

_OTHER_FORMATS = {
    b"\x1f\x8b": "compressed with gzip; decompress it with gzip -d",
    b"PK\x03\x04": "a zip archive; name it .npz if numpy.savez wrote it, or else save its arrays as .npz",
    b"\x93NUMPY": "one array as .npy; save it as data of an .npz: numpy.savez('NEW.npz', data=array)",
}
_OPERATION_OF = {operation.code.encode("latin-1"): operation for operation in pickletools.opcodes}

_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_LITERALS = frozenset(
    """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
    SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
    """.split()
)
_PYTHON_2_STRINGS = frozenset(["STRING", "BINSTRING", "SHORT_BINSTRING"])
_MEMO_PUT = frozenset(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"])
_MEMO_GET = frozenset(["GET", "BINGET", "LONG_BINGET"])
_OPERATIONS: dict[str, Callable[[_Machine, object], None]] = {
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
