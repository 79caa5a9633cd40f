"""What a pickle may be: a program."""

from __future__ import annotations

from pathlib import Path


class Malicious:
    """A value whose pickle creates the file ``target`` where it is executed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)
