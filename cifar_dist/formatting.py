"""Format text for people: durations, sizes, percentages, lists."""

from __future__ import annotations

import math
from collections.abc import Sequence


def clock(seconds: float) -> str:
    """Format a duration as ``m:ss``, ``h:mm:ss`` or ``Nd h:mm:ss``; a dash if it is not finite."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}:{rest:02}"
    days, hours = divmod(hours, 24)
    text = f"{hours}:{minutes:02}:{rest:02}"
    return f"{days}d {text}" if days else text


def duration(seconds: float) -> str:
    """Format a duration with its unit: ``0.3 s``, ``41 s``, ``12.3 min``, ``2.5 h``."""
    if 0 <= seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 59.95 * 60 else f"{seconds / 3600:.1f} h"


def percent(fraction: float, digits: int = 2) -> str:
    """Format a fraction as a percentage with so many decimals: ``91.08 %``."""
    return f"{100 * fraction:.{digits}f} %"


def rounded_percent(fraction: float) -> str:
    """Format a fraction as a percentage without decimals: ``91 %``; ``< 1 %`` for one above 0 that rounds to it."""
    return "< 1 %" if 0 < fraction <= 0.005 else percent(fraction, 0)


def loss_figure(loss: float) -> str:
    """Format a loss in the eight columns that it has: ``0.4785``, or ``9.61e+12`` of a run that diverges."""
    if loss < 999.99995:
        return f"{loss:.4f}"
    return f"{loss:.1f}" if loss < 99_999.95 else f"{loss:.3g}"


def percent_cell(fraction: float | None) -> str:
    """Format a fraction for a column of percentages, without the sign: ``91.08``; empty for None."""
    return "" if fraction is None else percent(fraction).removesuffix(" %")


def size(count: float) -> str:
    """Format a number of bytes: ``312 kB``, ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 99.5 or unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def and_more(shown: Sequence[str], total: int) -> str:
    """Join the texts that are shown, and count the others of ``total``: ``a, b, c and 7 more``."""
    more = f" and {total - len(shown):,} more" if total > len(shown) else ""
    return f"{', '.join(shown)}{more}"


def list_some(names: Sequence[str], limit: int = 3) -> str:
    """Quote the first names, and count the others: ``'a', 'b', 'c' and 7 more``."""
    return and_more([f"'{name}'" for name in names[:limit]], len(names))


def counted(count: int, noun: str) -> str:
    """Format a count of things: ``1 image``, ``2,000 images``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def it_or_them(names: Sequence[str]) -> str:
    """Return the pronoun for things that were named."""
    return "it" if len(names) == 1 else "them"


def list_renamed(old: Sequence[str], new: Sequence[str]) -> str:
    """List the first names that are others in ``new``, and count the rest: ``a -> b, b -> a``; empty for none."""
    renamed = [f"{before} -> {after}" for before, after in zip(old, new, strict=False) if before != after]
    return and_more(renamed[:3], len(renamed))
