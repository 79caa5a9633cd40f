"""A row of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cifar_dist.errors import TrainingFailedError, UserError, printable

_WHAT, _VERDICT = 10, 7
HEAD: Final = f"{'check':<{_WHAT}}  {'result':<{_VERDICT}}  found\n{'-' * _WHAT}  {'-' * _VERDICT}  {'-' * 5}"


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
    def warns(cls, what: str, text: str, remedy: str) -> Finding:
        return cls(what, text, Verdict.WARNING if remedy else Verdict.OK, remedy)

    @classmethod
    def fails(cls, what: str, text: str, remedy: str) -> Finding:
        return cls(what, text, Verdict.FAILED if remedy else Verdict.OK, remedy)

    @classmethod
    def of_error(cls, what: str, error: UserError | TrainingFailedError) -> Finding:
        """Return the row of what would end the run; the errors of this project end in the remedy."""
        text, _, remedy = str(error).partition("; ")
        return cls(what, text, Verdict.FAILED, remedy or "see above")

    def __str__(self) -> str:
        line = f"{self.what:<{_WHAT}}  {self.verdict:<{_VERDICT}}  {printable(self.text)}"
        return f"{line}\n{'':{_WHAT + _VERDICT + 4}}-> {printable(self.remedy)}" if self.remedy else line


def summary(findings: list[Finding]) -> str:
    """Return the last line of the table."""
    failed, warned = (
        [one.what for one in findings if one.verdict is kind] for kind in (Verdict.FAILED, Verdict.WARNING)
    )
    parts = [f"{len(failed)} failed ({', '.join(failed)})"] if failed else []
    parts += (
        [f"{len(warned)} warnings ({', '.join(warned)})" if len(warned) > 1 else f"a warning ({warned[0]})"]
        if (warned)
        else []
    )
    return f"{len(findings)} checks: {', '.join(parts) or 'all ok'}"
