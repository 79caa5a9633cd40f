"""A process that dies, or a machine that loses power, at a chosen moment of writing to the disk."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import mmap
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

# The C functions that change what is on the disk: between two of them a death makes no difference.
_WRITING = {
    *("mkdir", "open", "write", "__exit__", "close", "serialize_file", "fsync"),
    *("rename", "replace", "symlink", "unlink", "remove", "rmdir"),
}

_ENDING = {"__exit__", "close"}
_WRITERS = (io.BufferedWriter, io.BufferedRandom, io.FileIO, io.TextIOWrapper)


def dies_at(moment: int, work: Callable[[], object], folder: Path, *, power_loss: bool = False) -> bool:
    """Run ``work`` in a fork that dies before its ``moment``-th write call; return False once it survives to the end.

    With ``power_loss`` every file in ``folder`` that it wrote and that was not flushed to the disk loses its second
    half, as after a crash of the machine.
    """
    child = os.fork()
    if child == 0:
        code = 2
        try:
            arm(moment, folder, power_loss=power_loss)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"the work failed before it was killed (exit code {code})"
    return code != 0


def every_death(prepare: Callable[[], Path], work: Callable[[Path], object], *, power_loss: bool) -> Iterator[Path]:
    """Yield the folder that ``prepare()`` created, as left by ``work(folder)``, for each moment at which it can die."""
    for moment in range(1, 1000):
        folder = prepare()
        if not dies_at(moment, lambda: work(folder), folder, power_loss=power_loss):  # noqa: B023 - it is called here
            assert moment > 1, "nothing was written"
            return
        yield folder
    raise AssertionError("no end of writing calls")


def arm(moment: int, folder: Path, *, power_loss: bool = False, counted: Path | None = None, thread: str = "") -> None:
    """Make this process kill itself before its ``moment``-th write call; ``counted`` receives their number.

    The calls of all threads count, or those of threads whose names begin with ``thread``.
    """
    before = _inodes(folder)
    flushed: set[int] = set()
    fsync = os.fsync
    numbers = itertools.count(1)  # threads count in turn
    shown = _counter(counted) if counted else None

    def noted_fsync(fd: FileDescriptorLike) -> None:
        fsync(fd)
        flushed.add(os.fstat(fd if isinstance(fd, int) else fd.fileno()).st_ino)

    def count(frame: FrameType, event: str, function: Callable[..., object]) -> None:
        if event != "c_call" or function.__name__ not in _WRITING or frame.f_code.co_name == "noted_fsync":
            return
        if function.__name__ in _ENDING and not isinstance(getattr(function, "__self__", None), _WRITERS):
            return  # of a lock, or of what was only read
        if not threading.current_thread().name.startswith(thread):
            return
        calls = next(numbers)
        if shown is not None:
            shown[:8] = calls.to_bytes(8, "little")
        if calls > moment:
            threading.Event().wait()  # another thread is about to kill this process
        if calls == moment:
            sys.setprofile(None)
            for inode, path in _inodes(folder).items() if power_loss else ():
                if inode not in flushed | before.keys():
                    with contextlib.suppress(FileNotFoundError):  # the last call of another thread may move it
                        os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = noted_fsync
    sys.setprofile(count)
    threading.setprofile(count)  # of the threads that start from here on


def dying(moments: dict[int, int], counted: Path, thread: str = "") -> dict[str, str]:
    """Return the environment of a job whose ranks kill themselves before given write calls, or those of a ``thread``.

    ``counted``, with the rank appended to its name, receives the number of such calls of each rank.
    """
    return {"CIFAR_DIST_TEST_DIE_AT": json.dumps([moments, str(counted), thread])}


def arm_by_environment() -> None:
    """:func:`arm` a process that has the environment of :func:`dying`."""
    moments, counted, thread = json.loads(os.environ["CIFAR_DIST_TEST_DIE_AT"])
    rank = os.environ.get("RANK", "0")
    if rank in moments:
        path = Path(f"{counted}.{rank}")
        arm(moments[rank], path.parent, counted=path, thread=thread)


def _counter(path: Path) -> mmap.mmap:
    """Map eight bytes of a file, which keep the last value written to them, whatever kills this process."""
    path.write_bytes(bytes(8))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 8)


def read_count(path: Path) -> int:
    """Read the number of write calls in a file that :func:`arm` wrote."""
    return int.from_bytes(path.read_bytes(), "little")


def _inodes(folder: Path) -> dict[int, Path]:
    found = {}
    for place, _, names in os.walk(folder):  # passes over a folder that another thread moves
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not path.is_symlink():
                    found[path.stat().st_ino] = path
    return found
