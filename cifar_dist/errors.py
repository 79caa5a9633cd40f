"""The errors that are written for the reader: what was wrong, where, and what to type instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: stopped on request with a checkpoint, run me again


def printable(text: str) -> str:
    """``text`` with what cannot be printed escaped: nothing that a file or a person gave can break the line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class UserError(ValueError):
    """Bad input; exit code 2.

    Args:
        message: one line that says what, where, and what to type instead.
        more: a line for each of several things that are wrong at once.
    """

    def __init__(self, message: str, more: Iterable[str] = ()) -> None:
        super().__init__(message, tuple(more))

    def __str__(self) -> str:
        message, more = self.args
        return "\n".join(printable(line) for line in (message, *more))


class TrainingFailedError(RuntimeError):
    """Training cannot go on (a non-finite loss, ranks that do not synchronise). One line; exit code 1."""


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The clause that names the right word: ``did you mean 'lr'?`` or, with none near, the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """What another library says of an error, in one line."""
    reason = getattr(error, "reason", None) or error  # urllib's URLError keeps what happened there
    return next(iter(str(reason).splitlines()), type(error).__name__)
