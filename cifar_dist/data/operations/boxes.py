"""Rectangles of an image: select their pixels, and fill them with one colour."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.data.operations.grouping import BLACK, Fill, fill_color


def erase(images: Tensor, boxes: Tensor, fill: Fill = BLACK) -> Tensor:
    """Set a rectangle of each image to ``fill``.

    Args:
        images: [n, c, h, w] of any dtype.
        boxes: int64 [n, 4]: top, left, height, width in pixels; clipped to the image.
        fill: one number for each channel, or one for all.
    """
    inside = inside_boxes(boxes, *images.shape[2:])[:, None]
    return torch.where(inside, fill_color(fill, images), images)


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Select the pixels in ``boxes`` (int64 [n, 4]: top, left, height, width): bool [n, height, width]."""
    top, left, tall, wide = boxes.unbind(1)
    return inside_spans(top, tall, height)[:, :, None] & inside_spans(left, wide, width)[:, None, :]


def inside_spans(start: Tensor, length: Tensor | int, size: int) -> Tensor:
    """Select positions in [start, start + length): bool [n, size]; ``start`` int64 [n], ``length`` too or a number."""
    places = torch.arange(size, device=start.device)
    return (places >= start[:, None]) & (places < (start + length)[:, None])
