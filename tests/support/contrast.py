"""How well a colour can be read on another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST = 4.5
"""Of text, see https://www.w3.org/TR/WCAG21/#contrast-minimum."""


def rgb(colour: str) -> NDArray[np.float64]:
    """Return the parts of a colour such as ``#1f2328`` or ``#000``, in [0, 1]."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    return np.array([int(digits[place : place + 2], 16) for place in (0, 2, 4)]) / 255


def contrast(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the contrast ratio of two colours, float64 [3]."""
    linear = [np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in (one, other)]
    light = sorted(float(c @ (0.2126, 0.7152, 0.0722)) + 0.05 for c in linear)
    return light[1] / light[0]
