"""How a process ends: one line for the reader, the right exit code, and no abort during shutdown."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from cifar_dist.config.plugin_errors import describe_plugin_failure
from cifar_dist.errors import (
    GpuError,
    InUseError,
    JoinTimeoutError,
    MachineError,
    RankError,
    StopRequested,
    StorageError,
    TrainingFailedError,
    UserError,
    blame,
    printable,
)
from cifar_dist.exit_codes import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_IN_USE, EXIT_REQUEUE
from cifar_dist.launch.launched import is_first_of_machine, is_main_process
from cifar_dist.launch.reporter import is_first, is_reporter
from cifar_dist.terminal.notice import notice

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def exit_with(work: Callable[[], int]) -> NoReturn:
    """Run ``work`` and end the process with its exit code.

    Of an error that rank 0 raises, it prints the line; of one that only others raise, the first of them. Before the
    ranks have joined, and of a :class:`MachineError`, the first rank of each machine prints it; of a
    :class:`GpuError`, the first rank that has one.

    The interpreter's own shutdown is skipped: with a gloo process group it aborts about one job in thirty after the
    work is done.
    """
    _open_closed_streams()
    stdout = _guard_streams()
    _escape_what_stdout_lacks()
    try:
        code = work()
    except InUseError as error:
        code = _report(error, EXIT_IN_USE)
    except UserError as error:
        blamed = blame(error)
        code = _report(blamed, EXIT_BAD_INPUT if blamed is error else EXIT_FAILED)
    except TrainingFailedError as error:
        code = _report(error, EXIT_FAILED)
    except StopRequested as request:  # of a verb that leaves nothing behind; a training saves and returns
        if is_main_process():
            notice(f"stopped by {request}")
        code = EXIT_REQUEUE
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not interrupt the answer
        if is_main_process():
            notice("stopped by Ctrl-C")
        code = 128 + signal.SIGINT
    except SystemExit as error:  # argparse ends this way
        code = _report_exit(error)
    except BaseException as error:
        _report_unforeseen(error)
        code = EXIT_FAILED
    is_known = stdout.has_failed  # to the work, which has ended with that error or does without the output
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        if code == EXIT_DONE and isinstance(error, OSError) and not is_known:
            _report_unforeseen(error)
            code = EXIT_FAILED
    with contextlib.suppress(ValueError):  # a library has closed it
        sys.stderr.flush()
    os._exit(code)


def _open_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed, as some daemons start their programs.

    Otherwise the next file that is opened takes their place, and receives what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


class _Stream(io.FileIO):
    """Standard output or standard error.

    Ctrl-C ends a ``tee`` first, and a terminal can be closed: what is written after its reader was gone is swallowed,
    so that this ends no work. Neither does any error of standard error, which has no results.

    Attributes:
        has_failed: whether a write has raised an error, which names standard output.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        # isatty() is false of a terminal that is closed already. The null device comes along, and does no harm.
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


def _guard_streams() -> _Stream:
    """Write standard output and standard error through :class:`_Stream`; return that of standard output."""
    guarded = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        raw = guarded[name] = _Stream(stream.fileno(), name)
        is_device = stat.S_ISCHR(os.fstat(raw.fileno()).st_mode)
        by_line = is_device or stream.line_buffering or stream.write_through  # of python -u
        text = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=by_line)
        setattr(sys, name, text)
    return guarded["stdout"]


def _escape_what_stdout_lacks() -> None:
    """Print characters that the encoding of stdout lacks as escapes: a name of a class or run must end no command."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _report_unforeseen(error: BaseException) -> None:
    """Print what only this rank knows: the line of a plug-in, the file that failed, or where our code is wrong."""
    if reason := describe_plugin_failure(error):
        if is_first("plug-in"):
            notice(reason)
    elif isinstance(error, OSError):
        notice(str(StorageError.of(error)))
    else:
        traceback.print_exc()


def _report_exit(error: SystemExit) -> int:
    """Return the exit code that ``sys.exit`` asks for, after its text. A plug-in that calls it has failed."""
    if describe_plugin_failure(error):
        _report_unforeseen(error)
        return EXIT_FAILED
    if error.code is None or isinstance(error.code, int):
        return error.code or EXIT_DONE
    notice(printable(str(error.code)))
    return EXIT_FAILED


def _report(error: UserError | TrainingFailedError, code: int) -> int:
    if _reports(error):
        notice(str(error))
    return code


def _reports(error: UserError | TrainingFailedError) -> bool:
    """Whether this process prints the line of an error, and not another one of the job."""
    if isinstance(error, RankError):
        return error.reports
    if isinstance(error, JoinTimeoutError) or (is_main_process() and error.is_shared):
        return True
    if isinstance(error, GpuError):
        return is_first("gpu")
    if isinstance(error, MachineError) or not _has_joined():
        return is_first_of_machine()
    return not error.is_shared and is_reporter("error")


def _has_joined() -> bool:
    """Whether the ranks have met; without an import of torch, which takes seconds."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
