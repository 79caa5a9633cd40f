"""Errors written for the user: what is wrong, where, and what to type instead."""

from __future__ import annotations

import difflib
import errno
import shlex
from collections.abc import Iterable
from typing import Final

_FAULTS: Final = {
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EREMOTEIO, errno.EHOSTDOWN, errno.ENOLCK),
}
"""Causes of an OSError that no other input would avoid: the disk, the file server or the machine is at fault."""


def quoted(word: object) -> str:
    """Return a path or a name as one word of a command that a message suggests: quoted where a shell would split it."""
    return shlex.quote(str(word))


def printable(text: str) -> str:
    """Escape the unprintable characters of ``text``, so that untrusted text cannot break the line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class UserError(ValueError):
    """Invalid input; exit code 2.

    Args:
        message: one line: what is wrong, where, and what to type instead.
        more: further lines, one for each of several problems.

    Attributes:
        is_shared: whether all ranks raise it, so that rank 0 reports it.
    """

    is_shared = False

    def __init__(self, message: str, more: Iterable[str] = ()) -> None:
        super().__init__(message, tuple(more))

    def __str__(self) -> str:
        message, more = self.args
        return "\n".join(printable(line) for line in (message, *more))


class MachineError(UserError):
    """Something that one machine of the job lacks, so that its first process must report it; exit code 2."""


class GpuError(MachineError):
    """A GPU that its process cannot use; the first process of the job that has one reports it."""


class StopRequested(Exception):  # noqa: N818 - it is not an error
    """All ranks have agreed to stop; its text is the cause. Exit code 75."""


class InUseError(UserError):
    """Another process is training the run; exit code 69."""


class TrainingFailedError(RuntimeError):
    """Training cannot continue (a non-finite loss, ranks that do not synchronise). One line; exit code 1.

    Attributes:
        is_shared: as of :class:`UserError`.
    """

    is_shared = False


class JoinTimeoutError(TrainingFailedError):
    """Some processes or machines of the job never came. Whoever waited for them reports it."""


class RankError(TrainingFailedError):
    """What fails on one process, or on several at once for one cause. One line; exit code 1.

    Args:
        message: which, and what to use instead.
        reports: whether this process prints it, and not another one that failed before.
    """

    def __init__(self, message: str, *, reports: bool = True) -> None:  # the default is for unpickling
        super().__init__(message)
        self.reports = reports


class OutOfMemoryError(RankError):
    """One process has no memory left."""


class CollectiveTimeoutError(RankError):
    """One process has waited too long for another."""


class LostRankError(RankError):
    """The connection of one process to another has broken, because that one has ended."""


class StorageError(TrainingFailedError):
    """A file that the machine cannot read or write. One line with the path and the cause; exit code 1."""

    @classmethod
    def of(cls, error: OSError, where: object = "a file") -> StorageError:
        """Describe ``error``; ``where`` is the path if the error names none."""
        return cls(printable(f"{error.filename or where}: {error.strerror or error}"))


def in_one_line(error: Exception, where: object = "a file") -> str:
    """Describe an error in one line, with the file that cannot be read or written; ``where`` if it names none."""
    return printable(str(StorageError.of(error, where) if isinstance(error, OSError) else error))


def blame(error: UserError) -> UserError | StorageError:
    """Return ``error``, or a :class:`StorageError` with its message if a fault of the machine led to it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FAULTS:
            return StorageError(str(error))
        cause = cause.__context__  # set even by `raise ... from None`
    return error


def may_pass(error: BaseException) -> bool:
    """Whether the same command may succeed later: the machine is at fault, not the run."""
    blamed = blame(error) if isinstance(error, UserError) else error
    return isinstance(blamed, (OSError, StorageError, CollectiveTimeoutError, LostRankError))


def nearest(wrong: str, known: Iterable[str], otherwise: str = "") -> str:
    """Suggest the right word: ``did you mean 'lr'?``, or ``otherwise`` if none is close: by default the full list."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong.casefold(), [name.casefold() for name in names], n=1, cutoff=0.5)
    if not close:
        return otherwise or f"known: {', '.join(names)}"
    alike = [name for name in names if name.casefold() == close[0]]  # they differ in case
    return f"did you mean '{difflib.get_close_matches(wrong, alike, n=1, cutoff=0)[0]}'?"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error that is more than a heading."""
    reason = getattr(error, "reason", None) or error  # urllib's URLError wraps the cause
    lines = str(reason).splitlines()
    return next((line for line in lines if line and not line.endswith(":")), next(iter(lines), type(error).__name__))
