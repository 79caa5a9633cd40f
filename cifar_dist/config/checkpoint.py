"""Settings of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cifar_dist.config.section import BooleanMeans, Section, require_at_least


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """When to save checkpoints and how many to keep."""

    every: int = 1
    """Epochs between checkpoints; the end of training always saves one too."""
    every_steps: int = 0
    """Optimizer steps between checkpoints, in addition to those of ``every``; 0 for none."""
    keep: int = 2
    """Number of newest checkpoints to keep, in addition to the best one."""
    background: bool = True
    """Write checkpoints in a thread while training continues; it waits for a copy of the state in the main memory only.
    The last one, and that of a request to stop, are complete before the run ends."""
    sharded: Annotated[Literal["auto", "yes", "no"], BooleanMeans(yes="yes", no="no")] = "auto"
    """Let each process write a part of a checkpoint, so that none needs memory for a full copy: yes (or true), no (or
    false), or auto: with an engine that shards weights or optimizer state, from 100 million parameters."""
    on_error: Literal["warn", "stop"] = "warn"
    """If the run folder cannot be written, for example because the disk is full: warn, continue and try again, or stop
    at once. The final weights must be written."""

    def __post_init__(self) -> None:
        require_at_least(self, every=1, every_steps=0, keep=1)
