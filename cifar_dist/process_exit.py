"""How a process ends: one line for the reader, the right exit code, and no abort during shutdown."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

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
from cifar_dist.terminal.standard_streams import guard_streams

_NO_ADDRESSES = ("failed to map segment", "annot allocate memory")  # of the loader of shared libraries
_NO_THREADS = ("can't start new thread", "Resource temporarily unavailable")  # of Python; of C++ and of fork


def exit_with(work: Callable[[], int]) -> NoReturn:
    """Run ``work`` and end the process with its exit code.

    Of an error that rank 0 raises, it prints the line; of one that only others raise, the first of them. Before the
    ranks have joined, and of a :class:`MachineError`, the first rank of each machine prints it; of a
    :class:`GpuError`, the first rank that has one.

    The interpreter's own shutdown is skipped: with a gloo process group it aborts about one job in thirty after the
    work is done.
    """
    stdout = guard_streams()
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


def _report_unforeseen(error: BaseException) -> None:
    """Print what only this rank knows: the line of a plug-in, the file that failed, or where our code is wrong."""
    if reason := describe_plugin_failure(error):
        if is_first("plug-in"):
            notice(reason)
    elif isinstance(error, (RuntimeError, BlockingIOError)) and str(error).endswith(_NO_THREADS):
        limits = "raise ulimit -u, or the pids limit of the container"
        notice(f"{error}; no more threads or processes may be started: {limits}")
    elif isinstance(error, OSError):
        notice(str(StorageError.of(error)))
    elif isinstance(error, ImportError) and any(cause in str(error) for cause in _NO_ADDRESSES):
        notice(f"{error}; a limit on address space leaves too little for it: ulimit -v unlimited")
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
