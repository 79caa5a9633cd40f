"""``timeline.jsonl``: when and where a run started, branched, stopped, was killed, resumed, was extended and finished.

Unlike the metrics it is never truncated, so it keeps every interruption.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args

from cifar_dist.files.atomic import naming

Kind = Literal["started", "resumed", "interrupted", "killed", "failed", "stalled", "finished", "branched", "extended"]
ORIGINS: Final = ("branched", "extended")
"""Kinds of events that say where a run comes from or how long it is, and not that a process began or ended."""
SAVED: Final = ("resumed", "interrupted", "finished", "extended")
"""Kinds of events at whose step, unless it is 0, there was a checkpoint."""
Status = Literal["finished", "interrupted", "failed"]
"""How a process ended that could still report it: one of ``Kind``."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event in the life of a run.

    Attributes:
        time: UTC, ISO 8601 to the second.
        kind: ``interrupted`` is a stop on request; ``killed`` is an end that the process could not report and that the
            next resume detected; ``stalled`` is an end because no step ended for too long; ``branched`` is a beginning
            with another run's checkpoint, ``extended`` a change of the run's length.
        step: optimizer steps done at that time.
        processes: number of processes that train from then on; 0 if the run ends. Of a branch, this and what follows,
            but for the note, describe the job of its origin that trained the step; 0 if that is unknown.
        where: they compute: wrapper and device, such as ``DDP, cpu``.
        note: the reason, or what was lost; one line.
        numerics: versions, commit and CPU by which they may round differently; empty if the run ends, or is older.
        threads: of each process on a CPU; 0 on a GPU, if the run ends, or is older.
        compile: ``train.compile`` of them; empty if the run ends, or is older.
        precision: they compute in, such as ``fp32``; empty if the run ends, or is older.
    """

    time: str
    kind: Kind
    step: int
    processes: int = 0
    where: str = ""
    note: str = ""
    numerics: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    compile: str = ""
    precision: str = ""

    @property
    def wrapper(self) -> str:
        return self.where.rpartition(", ")[0]

    @property
    def device(self) -> str:
        return self.where.rpartition(", ")[2]


def utc(timestamp: float | None = None) -> str:
    """Format ``timestamp`` (seconds since 1970), or the current time, as ``2026-11-21T10:54:03Z``."""
    moment = datetime.now(UTC) if timestamp is None else datetime.fromtimestamp(timestamp, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def append(path: Path, event: Event) -> None:
    """Add an event to the timeline ``path``."""
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(asdict(event)) + "\n")


def read(path: Path) -> list[Event]:
    """Read the events in the order they were written; skip lines that a kill left incomplete."""
    if not path.exists():
        return []
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = _from_line(line)
        except (ValueError, TypeError, RecursionError):
            continue
        events.append(event)
    return events


def last_of_a_process(events: Sequence[Event]) -> Event | None:
    """Return the last event that says that a process began or ended."""
    return next((event for event in reversed(events) if event.kind not in ORIGINS), None)


def starts(events: Sequence[Event]) -> list[Event]:
    """List the events with which a process began to train."""
    return [event for event in events if event.kind in ("started", "resumed")]


def lacks_end(events: Sequence[Event]) -> bool:
    """Whether no process has recorded that the run is finished since the last one began."""
    last = next((event.kind for event in reversed(events) if event.kind in ("started", "resumed", "finished")), None)
    return last in ("started", "resumed")


def origin(events: Sequence[Event]) -> str:
    """Say what a run branched from and how its length changed, in one line; empty if neither."""
    words = {"branched": "branch of {0.note}", "extended": "extended after step {0.step:,}: {0.note}"}
    return "; ".join(words[event.kind].format(event) for event in events if event.kind in ORIGINS)


def _from_line(line: str) -> Event:
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError("not an event")
    event = Event(**{key: raw[key] for key in raw.keys() & {one.name for one in fields(Event)}})
    if event.kind not in get_args(Kind) or not isinstance(event.numerics, dict):
        raise ValueError("not an event")
    if not all(type(number) is int for number in (event.step, event.processes, event.threads)):
        raise ValueError("not an event")
    texts = (event.time, event.where, event.note, event.compile, event.precision, *event.numerics.values())
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not an event")
    return event
