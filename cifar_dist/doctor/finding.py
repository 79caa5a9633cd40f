"""The doctor's table, and a row of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TextIO

from cifar_dist.errors import TrainingFailedError, UserError, printable
from cifar_dist.terminal.screen import fold, table_width

_WHAT, _VERDICT = 10, 7
_HEAD: Final = f"{'check':<{_WHAT}}  {'result':<{_VERDICT}}  found\n{'-' * _WHAT}  {'-' * _VERDICT}  {'-' * 5}"


class Verdict(StrEnum):
    """Whether a run works with what was found: yes; perhaps not well; no."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Finding:
    """What was checked and found.

    Attributes:
        what: the check, one word.
        text: what was found, one line.
        verdict: whether a run works with it.
        remedy: what the reader should do or type; empty if nothing.
    """

    what: str
    text: str
    verdict: Verdict = Verdict.OK
    remedy: str = ""

    @classmethod
    def ok_or(cls, otherwise: Verdict, what: str, text: str, remedy: str) -> Finding:
        """Return a row that is OK without a ``remedy``, and has the verdict ``otherwise`` with one."""
        return cls(what, text, otherwise if remedy else Verdict.OK, remedy)

    def row(self, width: int | None = None) -> str:
        """Return the row of the table, folded to ``width``; the remedy, which may be a command to copy, is not."""
        indent = _WHAT + _VERDICT + 4
        line = f"{self.what:<{_WHAT}}  {self.verdict:<{_VERDICT}}  {printable(self.text)}"
        if width is not None:
            line = fold(line, width, indent)
        return f"{line}\n{'':{indent}}-> {printable(self.remedy)}" if self.remedy else line


def print_table(findings: Iterable[Finding], stream: TextIO | None) -> list[Finding]:
    """Print the table, each row as it is found; without a stream, as on the other ranks, only return the rows."""
    rows: list[Finding] = []
    for finding in findings:
        if stream is not None:
            head = [] if rows else [_HEAD]
            print(*head, finding.row(table_width(stream)), sep="\n", file=stream, flush=True)
        rows.append(finding)
    if stream is not None:
        print(_summary(rows), file=stream, flush=True)
    return rows


def until_error(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield rows, and for an error that would end the run a last one; the error must be the same on all ranks."""
    try:
        yield from findings
    except (UserError, TrainingFailedError) as error:
        text, _, remedy = str(error).partition("; ")  # the errors of this project end in the remedy
        yield Finding("run", text, Verdict.FAILED, remedy)


def _summary(findings: Sequence[Finding]) -> str:
    """Return the last line of the table."""
    parts = []
    for kind, name in ((Verdict.FAILED, "failed"), (Verdict.WARNING, "with a warning")):
        if found := [one.what for one in findings if one.verdict is kind]:
            parts.append(f"{len(found)} {name} ({', '.join(found)})")
    return f"{len(findings)} checks: {', '.join(parts) or 'all ok'}"
