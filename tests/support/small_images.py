"""Shared helpers of the tests of transforms.

Images that augmentation treats differently: noise, gradients, gray, flat, two-valued, black and white; and a test
of independence.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor


def images(count: int, height: int = 14, width: int = 11, channels: int = 3) -> Tensor:
    """uint8 [count, channels, height, width], the same for the same arguments."""
    random = np.random.default_rng(0)
    batch = random.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    ramp = np.linspace(20, 230, height * width).reshape(height, width)
    for index in range(count):
        if index % 7 == 1:
            batch[index] = np.stack([ramp * (0.4 + 0.3 * c) for c in range(channels)]).astype(np.uint8)
        elif index % 7 == 2:
            batch[index] = batch[index, :1]
        elif index % 7 == 3:
            batch[index] = random.integers(0, 256, (channels, 1, 1))
        elif index % 7 == 4:
            batch[index] = np.where(batch[index] < 128, 60, 61)
        elif index % 7 == 5:
            batch[index] = 255 * (index // 7 % 2)
    return torch.from_numpy(batch)


def assert_unrelated(columns: Tensor, but: Collection[tuple[int, int]] = ()) -> None:
    """Assert that no two of the columns [n, k] are correlated, within six standard errors, except pairs in ``but``."""
    correlation = torch.corrcoef(columns.T)
    for one in range(columns.shape[1]):
        for other in range(one + 1, columns.shape[1]):
            if (one, other) not in but:
                assert abs(float(correlation[one, other])) < 6 / len(columns) ** 0.5, f"{one} and {other}"
