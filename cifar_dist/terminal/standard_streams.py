"""Standard streams that may be closed, lose their reader, or lack characters."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class GuardedStream(io.FileIO):
    """Standard output or standard error.

    Ctrl-C ends a ``tee`` first, and a terminal can be closed: what is written after its reader was gone is swallowed,
    so that this ends no work. Neither does any error of standard error, which has no results.

    Attributes:
        has_failed: whether a write has raised an error, which names standard output.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        # isatty() is false of a terminal that is closed already. The null device counts as one with a reader, which
        # does no harm.
        mode = os.fstat(descriptor).st_mode
        has_reader = stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._swallowed = {errno.EIO, errno.EPIPE} if has_reader else set[int]()
        self._swallows_all = name == "stderr"
        self.has_failed = False

    def write(self, data: ReadableBuffer) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self._swallows_all or error.errno in self._swallowed:
                return memoryview(data).nbytes
            self.has_failed = True
            error.filename = "standard output"
            del error.filename2  # None would be printed as a second name
            raise


def guard_streams() -> GuardedStream:
    """Write standard output and standard error through :class:`GuardedStream`; return that of standard output.

    Characters that their encoding lacks are printed as escapes: a name of a class or run must end no command. Streams
    that are closed, as some daemons start their programs, are opened on the null device.
    """
    _open_closed_streams()
    guarded = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        raw = guarded[name] = GuardedStream(stream.fileno(), name)
        is_device = stat.S_ISCHR(os.fstat(raw.fileno()).st_mode)
        by_line = is_device or stream.line_buffering or stream.write_through  # of python -u
        errors = "backslashreplace" if stream.errors == "strict" else stream.errors
        text = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, errors, line_buffering=by_line)
        setattr(sys, name, text)
    return guarded["stdout"]


def _open_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed.

    Otherwise the next file that is opened takes their place, and receives what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
