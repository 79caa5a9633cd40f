"""Epochs, which settings count time in, as optimizer steps."""

from __future__ import annotations

_ROUNDING = 1e-6  # steps: far above the error of the product, and far below one step


def steps_in(epochs: float, steps_per_epoch: int) -> float:
    """Convert a number of epochs to optimizer steps, without the rounding error of the product.

    1.1 * 50 is 55.00000000000001, which would delay a setting by one step. A number within 1e-6 of an integer is that
    integer; other fractions are kept.
    """
    steps = epochs * steps_per_epoch
    whole = round(steps)
    return float(whole) if whole and abs(steps - whole) < _ROUNDING else steps
