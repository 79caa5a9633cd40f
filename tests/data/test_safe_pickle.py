"""The pickle reader reads plain data exactly, and executes nothing."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import subprocess
from collections import OrderedDict
from datetime import date
from functools import partial
from pathlib import Path, PosixPath

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from support.dataset_builders import python_2_pickle

from cifar_dist.data.safe_pickle import read_pickle
from cifar_dist.errors import UserError

PROTOCOLS = st.integers(0, pickle.HIGHEST_PROTOCOL)
KEYS = st.text(max_size=8)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=4), inner, max_size=4)
    ),
    max_leaves=10,
)
ARRAYS = st_np.arrays(
    dtype=st_np.boolean_dtypes() | st_np.integer_dtypes(endianness="?") | st_np.floating_dtypes(sizes=(32, 64)),
    shape=st_np.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(KEYS, PLAIN, max_size=5), PROTOCOLS)
def test_plain_data_is_read_as_python_reads_it(content: dict[str, object], protocol: int) -> None:
    assert read_pickle(pickle.dumps(content, protocol), "f") == content


@settings(deadline=None, max_examples=150)
@given(ARRAYS, PROTOCOLS, st.sampled_from(["as it is", "transposed", "every second", "scalar"]))
def test_arrays_are_read_as_numpy_reads_them(array: np.ndarray, protocol: int, view: str) -> None:
    if view == "transposed":
        array = array.T
    elif view == "every second" and array.ndim:
        array = array[::2]
    value: object = array.reshape(-1)[0] if view == "scalar" and array.size else array
    read = read_pickle(pickle.dumps({"a": value}, protocol), "f")["a"]
    assert np.array_equal(np.asarray(read), np.asarray(value), equal_nan=np.asarray(value).dtype.kind == "f")
    if isinstance(value, np.ndarray):
        assert isinstance(read, np.ndarray)
        assert read.dtype == value.dtype


def test_python_2_strings_come_as_bytes_and_keys_as_text() -> None:
    images = np.arange(12, dtype=np.uint8).reshape(2, 6)
    read = read_pickle(python_2_pickle({b"data": images, b"labels": [3, 300, 70000], b"name": b"\xff\x00"}), "f")
    assert np.array_equal(read.pop("data"), images)  # type: ignore[arg-type]
    assert read == {"labels": [3, 300, 70000], "name": b"\xff\x00"}


def test_a_string_that_python_2_wrote_in_its_default_protocol_is_read() -> None:
    text = rb"""(dp0
S'data'
p1
S'\x00\xff\n\'"'
p2
sS"it's \\"
I7
s."""
    assert read_pickle(text, "f") == {"data": b"\x00\xff\n'\"", "it's \\": 7}
    array = (
        b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\n"
        b"tp6\nRp7\n(I1\n(I3\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\nNNNI-1\nI-1\n"
        b"I0\ntp14\nbI00\nS'\\x00\\x80\\xff'\np15\ntp16\nbs."
    )
    assert np.array_equal(np.asarray(read_pickle(array, "f")["data"]), [0, 128, 255])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(b"x", mtime=0), "some.pkl is not a pickle but compressed with gzip; decompress it with gzip -d"),
        (b"PK\x03\x04...", "a zip archive; name it .npz if numpy.savez wrote it, or else save its arrays as .npz"),
        (b"\x93NUMPY\x01\x00", "one array as .npy; save it as data of an .npz: numpy.savez('NEW.npz', data=array)"),
        (b"hello world", "is not an intact pickle (it recalls object 101, which it has not stored); download"),
        (b"<!DOCTYPE html>", "is not an intact pickle (byte 0 is b'<', which is no operation); download"),
        (b"S'text\n.", "is not an intact pickle (a string in it has no quotes); download"),
        (b"\x80\x02}", "is not an intact pickle (it ends before its STOP operation); download"),
        (b"", "is not an intact pickle (it ends before its STOP operation); download"),
    ],
)
def test_a_file_that_is_no_pickle_is_named_as_what_it_is(data: bytes, says: str) -> None:
    assert says in refusal(data)


def test_a_list_that_contains_itself_is_read() -> None:
    loop: list[object] = []
    loop.append(loop)
    read = read_pickle(pickle.dumps({"a": loop}), "f")["a"]
    assert isinstance(read, list)
    assert read[0] is read


class Call:
    """An object that pickles as a function call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


class State:
    """An object that pickles as a function call whose result gets a state."""

    def __reduce__(self) -> tuple[object, ...]:
        return list, (), {"x": 1}


def refusal(data: bytes) -> str:
    with pytest.raises(UserError) as error:
        read_pickle(data, "some.pkl")
    message = str(error.value)
    assert message.startswith("some.pkl")
    assert "\n" not in message
    assert message.isprintable()
    return message


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_executed(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "executed"
    attacks = {
        "system": Call(os.system, f"touch {proof}"),
        "eval": Call(eval, f"open({str(proof)!r}, 'w')"),
        "exec": Call(exec, f"open({str(proof)!r}, 'w')"),
        "open": Call(open, str(proof), "w"),
        "getattr": Call(getattr, "x", "upper"),
        "Popen": Call(subprocess.Popen, ["touch", str(proof)]),
        "__import__": Call(__import__, "os"),
        "partial": Call(partial, print),
        "OrderedDict": OrderedDict(a=1),
        "date": date(2020, 1, 1),
        "": PosixPath("x"),
        "list": State(),
        "SET" if protocol >= 4 else "set": {1, 2},
        "load": Call(np.load, str(proof)),
        "'O8'": np.array([None, Call(os.system, f"touch {proof}")], dtype=object),
        "rec": np.rec.fromrecords([(1, 2)]),
    }
    for name, attack in attacks.items():
        for place in ({"data": attack}, [attack], attack):
            message = refusal(pickle.dumps(place, protocol))
            assert "which plain data never requires" in message or "only numeric arrays are supported" in message
            assert name in message
    assert not proof.exists()


def test_a_name_is_printed_without_control_characters() -> None:
    assert "it requests os.system, which plain data never requires" in refusal(b"cos\nsystem\n(S'true'\ntR.")
    assert "\x1b" not in refusal(b"\x8c\x05\x1b[31m\x8c\x01x\x93)R.")


@pytest.mark.parametrize(
    "attack",
    {
        "bytes of a size": b"\x80\x04\x8c\x08builtins\x8c\x05bytes\x93\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
        "bytearray of a size": b"cbuiltins\nbytearray\n(I1000000000000\ntR.",
        "string of eight exabytes": b"\x8e" + struct.pack("<Q", 2**63 - 1) + b"x.",
        "hash of a tower of tuples": b"\x80\x02}K\x01\x85q\x00"
        + b"h\x000\x86q\x00".replace(b"0", b"h\x00") * 90
        + b"K\x01s.",
        "state of a function": b"\x80\x02c_codecs\nencode\n}U\x0c__defaults__)sb.",
        "call of a string": b"U\x09os.system)R.",
        "getattr through a dotted name": b"\x8c\x05numpy\x8c\x13ndarray.__class__.x\x93)R.",
        "extension registry": b"\x80\x02\x82\x01.",
        "persistent id": b"Pfile:///etc/passwd\n.",
        "instance of a class": b"(ios\nsystem\n.",
        "new object": b"\x80\x02cos\nsystem\n)\x81.",
        "out-of-band buffer": b"\x80\x05\x97.",
        "decode bomb": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x04\x00\x00\x00zlib\x86R.",
        "array larger than its bytes": (
            b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            b"(K\x01\x8a\x06\x00\x00\x00\x00\x00\x10\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U\x01xtbs."
        ),
        "array of objects": b"\x80\x02cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.",
        "array of records": b"\x80\x02cnumpy\ndtype\nU\x05u1,u1\x85R.",
        "shape of text": (
            b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(C\x01xcnumpy\ndtype\nU\x02u1\x85RU\x01aU\x01CtR."
        ),
        "empty file": b"",
        "no end": b"\x80\x02}",
        "stop with nothing": b".",
        "mark that is not there": b"\x80\x02t.",
        "pop of an empty stack": b"\x80\x02s.",
        "no pickle at all": b"<!DOCTYPE html><html>",
        "number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_pickle_made_to_harm_is_refused(attack: tuple[str, bytes]) -> None:
    refusal(attack[1])


def test_integers_that_would_take_hours_are_refused() -> None:
    """Long ones multiply slowly; the multiples of 2**61 - 1 have one hash."""
    long = b"\x8a\x0a" + (2**61 - 1 << 9).to_bytes(10, "little")
    shape = b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(C\x01xcnumpy\ndtype\nU\x02u1\x85R" + long + b"\x85U\x01CtR."
    assert "an array of an impossible shape" in refusal(shape)
    assert "a key of more than 64 bits" in refusal(b"\x80\x02}" + long + b"Ns.")
    assert "a key of more than 64 bits" in refusal(b"\x80\x02}(" + long + b"Nu.")
    assert "a key of more than 64 bits" in refusal(b"}p%d\n." % (2**61 - 1 << 9))


def test_sizes_in_a_pickle_allocate_no_memory() -> None:
    """A memo index makes Python's Unpickler take 32 GiB; a frame's length is a hint."""
    assert read_pickle(b"\x80\x02}r\xff\xff\xff\x7f.", "f") == {}
    assert read_pickle(b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + b"}.", "f") == {}


def test_a_string_cannot_be_multiplied() -> None:
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x000"
    once = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    assert "it builds more bytes than it has" in refusal(
        b"\x80\x02](" + text.replace(b"q\x000", b"q\x00") + once * 3 + b"e."
    )


REAL = python_2_pickle({b"data": np.arange(24, dtype=np.uint8).reshape(2, 12), b"labels": [1, 2], b"x": b"y" * 300})
MODERN = [pickle.dumps({"data": np.arange(24), "ids": list(range(5)), "n": {"a": (1.5, None)}}, p) for p in range(6)]


def data_or_refusal(data: bytes) -> dict[str, object] | str:
    """Return the result, or the message of a UserError of one line, the only error allowed."""
    try:
        return read_pickle(data, "some.pkl")
    except UserError as error:
        message = str(error)
    assert message.startswith("some.pkl")
    assert "\n" not in message
    return message


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([REAL, *MODERN]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    st.integers(0, 10_000),
)
@example(REAL, [], 0)
def test_any_damage_gives_data_or_one_line(original: bytes, changes: list[tuple[int, int]], end: int) -> None:
    data = bytearray(original)
    for place, value in changes:
        data[place % len(data)] = value
    cut = bytes(data[: len(data) - end % len(data)] if end % 3 == 1 else data)
    read = data_or_refusal(cut)
    if isinstance(read, dict):
        assert all(isinstance(key, str) for key in read)
    if cut == original:
        assert isinstance(read, dict)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_give_data_or_one_line(data: bytes) -> None:
    data_or_refusal(data)
