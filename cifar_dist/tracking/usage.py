"""What an epoch took: wall time by phase, memory, and how much of the device's arithmetic it used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from cifar_dist.formatting import percent, size

Phase = Literal[
    "data",  # the wait for decoded images, and the order of an epoch
    "copy",  # of a batch to the device, or out of the images that it holds
    "augmentation",
    "forward",
    "backward",
    "communication",  # of gradients, as far as the backward pass does not hide it
    "optimizer",
    "evaluation",
    "checkpoint",
    "rest",
]
"""A phase of training. FSDP and DeepSpeed communicate within the forward and backward pass, and count there."""
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of rank 0, since the last record that has one or since the process began to train.

    Attributes:
        seconds: wall time.
        shares: fraction of ``seconds`` by phase; a phase that took nothing is left out.
        peak_bytes: the most memory that the process has held: since that record of its GPU, or without one since its
            beginning of the machine.
        utilisation: floating-point operations of forward and backward passes a second of training, as a fraction of
            those of large matrix products in the same precision, or of the fastest epoch so far; None if unknown.
    """

    seconds: float
    shares: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    utilisation: float | None = None

    @classmethod
    def of(cls, seconds: Mapping[Phase, float], peak_bytes: int, utilisation: float | None) -> Usage:
        """Build one from the seconds of each phase."""
        wall = sum(seconds.values())
        shares = {phase: round(seconds.get(phase, 0.0) / wall, 4) for phase in PHASES if wall > 0}
        used = None if utilisation is None else round(utilisation, 4)
        return cls(round(wall, 6), {phase: share for phase, share in shares.items() if share}, peak_bytes, used)

    @classmethod
    def from_json(cls, raw: object) -> Usage:
        """Read what :meth:`to_json` returned; unknown fields and phases are ignored.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(raw, dict):
            raise ValueError("'usage' is not an object")
        shares = raw.get("shares", {})
        if not isinstance(shares, dict):
            raise ValueError("'shares' is not an object")
        used = raw.get("utilisation")
        return cls(
            seconds=_amount(raw, "seconds"),
            shares={phase: _amount(shares, phase) for phase in PHASES if phase in shares},
            peak_bytes=round(_amount(raw, "peak_bytes")),
            utilisation=None if used is None else _amount(raw, "utilisation"),
        )

    def to_json(self) -> dict[str, object]:
        """Return plain values, without those that are unknown."""
        known = {"seconds": self.seconds, "shares": dict(self.shares), "peak_bytes": self.peak_bytes}
        return known if self.utilisation is None else {**known, "utilisation": self.utilisation}

    def in_words(self) -> str:
        """Return one line for a reader."""
        facts = [self.shares_in_words(), f"{size(self.peak_bytes)} of memory at most"]
        if self.utilisation is not None:
            facts.append(f"{percent(self.utilisation, 0)} of the device's arithmetic")
        return "; ".join(facts)

    def shares_in_words(self) -> str:
        """Return the shares of the phases, the largest first."""
        largest = sorted(self.shares.items(), key=lambda item: -item[1])
        return ", ".join(f"{phase} {percent(share, 0)}" for phase, share in largest if share > 0.005)  # others are 0


def total(usages: Iterable[Usage]) -> Usage | None:
    """Add up consecutive usages; None without any that took time."""
    known = [usage for usage in usages if usage.seconds > 0]
    if not known:
        return None
    seconds = {phase: sum(one.seconds * one.shares.get(phase, 0.0) for one in known) for phase in PHASES}
    rated = [(one.seconds, one.utilisation) for one in known if one.utilisation is not None]
    used = sum(wall * rate for wall, rate in rated) / sum(wall for wall, _ in rated) if rated else None
    return Usage.of(seconds, max(one.peak_bytes for one in known), used)


def _amount(raw: Mapping[str, object], key: str) -> float:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"'{key}' is not a number of at least 0")
    return float(value)
