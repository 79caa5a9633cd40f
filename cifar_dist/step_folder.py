"""The name of a folder that belongs to one step of a run: its checkpoint, its replay, or the stacks of a stall."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"step-(\d{8,12})")


def step_name(step: int) -> str:
    """Return the name of a step's folder, ``step-00001234``: sorted by name, folders are sorted by step."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """Parse the step in a folder's name; None for any other name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None
