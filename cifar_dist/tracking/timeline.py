"""``timeline.jsonl``: when a run started, stopped, was killed, resumed and finished, and on what.

Unlike the metrics it is never cut back: what was interrupted stays part of the story.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["started", "resumed", "interrupted", "killed", "failed", "finished"]
Status = Literal["finished", "interrupted", "failed"]
"""How a process that could still say so ended: one of ``Kind``."""


@dataclass(frozen=True, slots=True)
class Event:
    """One turn in the life of a run.

    Attributes:
        time: UTC, ISO 8601 to the second.
        kind: ``interrupted`` is a stop on request, ``killed`` one without a word (found out at the next start).
        step: optimizer steps done then.
        processes: how many train from here on; 0 where the run ends.
        where: host and device.
        note: why, or what was lost; one line.
    """

    time: str
    kind: Kind
    step: int
    processes: int = 0
    where: str = ""
    note: str = ""


def utc(timestamp: float | None = None) -> str:
    """``2026-11-21T10:54:03Z`` of ``timestamp`` (seconds since 1970), or of now."""
    moment = datetime.now(UTC) if timestamp is None else datetime.fromtimestamp(timestamp, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def append(path: Path, event: Event) -> None:
    """Add an event to the timeline ``path``."""
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(asdict(event)) + "\n")


def read(path: Path) -> list[Event]:
    """The events in the order they were written; lines that are not one (torn by a kill) are left out."""
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


def _from_line(line: str) -> Event:
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError("not an event")
    event = Event(**{key: raw[key] for key in raw.keys() & {field.name for field in fields(Event)}})
    if event.kind not in get_args(Kind) or type(event.step) is not int or type(event.processes) is not int:
        raise ValueError("not an event")
    if not all(isinstance(text, str) for text in (event.time, event.where, event.note)):
        raise ValueError("not an event")
    return event
