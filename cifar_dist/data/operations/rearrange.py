"""Flips and crops, composed and read at once: each output pixel is a pixel of the same image, or outside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cifar_dist.data.operations.grouping import Fill, fill_color


@dataclass(frozen=True)
class Sources:
    """The sources of an image's pixels.

    Attributes:
        height, width: of the image.
        rows, columns: int64 [n, height] and [n, width]: the source row of each output row, and likewise the columns.
        outside_rows, outside_columns: bool, of the same shapes: rows and columns to fill instead; None for none.
    """

    height: int
    width: int
    rows: Tensor
    columns: Tensor
    outside_rows: Tensor | None = None
    outside_columns: Tensor | None = None

    def mirrored(self, chosen: Tensor) -> Sources:
        """Return the sources of the image mirrored left to right where ``chosen``, bool [n]."""
        return replace(self, columns=torch.where(chosen[:, None], self.width - 1 - self.columns, self.columns))

    def shifted(self, down: Tensor, right: Tensor) -> Sources:
        """Return the sources of a window shifted ``down`` and ``right`` (int64 [n]), which may leave the image."""
        return replace(self, rows=self.rows + down[:, None], columns=self.columns + right[:, None])

    def reflected(self) -> Sources:
        """Mirror sources that left the image by less than its side at its edge, without repeating the edge."""
        return replace(self, rows=_reflect(self.rows, self.height), columns=_reflect(self.columns, self.width))

    def filled(self) -> Sources:
        """Mark sources that left the image as outside."""
        rows, columns = _outside(self.rows, self.height), _outside(self.columns, self.width)
        return Sources(
            self.height,
            self.width,
            self.rows.clamp(0, self.height - 1),
            self.columns.clamp(0, self.width - 1),
            rows if self.outside_rows is None else rows | self.outside_rows,
            columns if self.outside_columns is None else columns | self.outside_columns,
        )


def rearrange(images: Tensor, moves: Sequence[Callable[[Sources], Sources]], fill: Fill) -> Tensor:
    """Apply any number of moves with one read of each pixel.

    Args:
        images: uint8 [n, c, h, w], fastest in the memory layout [n, h, w, c]; the result has that layout.
        moves: in the order in which they are applied to the images.
        fill: colour of pixels from outside the image.
    """
    count, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device).expand(count, -1)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    sources = Sources(height, width, rows, columns)
    for move in reversed(moves):  # from the output back to the input
        sources = move(sources)
    first = torch.arange(count, device=images.device)[:, None, None] * height
    places = (first + sources.rows[:, :, None]) * width + sources.columns[:, None, :]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    # On a CPU three times as fast as indexing, which computes the place of each number.
    result = pixels.index_select(0, places.flatten()).view(count, height, width, channels).permute(0, 3, 1, 2)
    if sources.outside_rows is None or sources.outside_columns is None:
        return result
    outside = sources.outside_rows[:, :, None] | sources.outside_columns[:, None, :]
    return torch.where(outside[:, None], fill_color(fill, images), result)


def _outside(positions: Tensor, size: int) -> Tensor:
    return (positions < 0) | (positions >= size)


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Mirror positions without repeating the edge, as torch's ``reflect`` padding: -1 -> 1, size -> size - 2."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)
