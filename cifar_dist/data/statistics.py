"""Mean and standard deviation of a dataset's pixels, exactly reproducible.

They are computed from integer counts of each pixel value and divided once, so neither the order nor the grouping of
the images affects the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_CHUNK_BYTES = 8 << 20  # of pixels; counting them takes three times as much


def in_chunks(count: int, image_bytes: int) -> Iterator[slice]:
    """Split ``count`` images of so many bytes into chunks that are small beside the memory of any machine."""
    length = max(1, _CHUNK_BYTES // image_bytes)
    return (slice(start, min(start + length, count)) for start in range(0, count, length))


def pixel_counts(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count how often each pixel value occurs, int64 [channels, 256]; counts of several batches can be added.

    Args:
        images: uint8 [samples, height, width, channels].
    """
    channels = images.shape[3]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for chunk in in_chunks(len(images), math.prod(images.shape[1:])):
        for channel in range(channels):
            counts[channel] += np.bincount(images[chunk][..., channel].reshape(-1), minlength=256)
    return counts


def channel_statistics(counts: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation of each channel over all pixels, in [0, 1].

    Args:
        counts: from :func:`pixel_counts`.
    """
    means, stds = [], []
    for channel in counts.tolist():  # Python integers do not overflow
        n = sum(channel)
        total = sum(value * count for value, count in enumerate(channel))
        squares = sum(value * value * count for value, count in enumerate(channel))
        means.append(total / (255 * n))
        stds.append(math.sqrt((n * squares - total * total) / (255 * n) ** 2))
    return tuple(means), tuple(stds)


def note_black(counts: NDArray[np.int64]) -> list[str]:
    """Note images that were probably stored as fractions: no pixel is brighter than 1 of 255.

    Args:
        counts: from :func:`pixel_counts`.
    """
    if counts[:, 2:].any():
        return []
    return [
        "no pixel is brighter than 1 of 255; if the values were from 0 to 1, store them again: "
        "(255 * images).round().astype('uint8')"
    ]
