"""What the families share: the colour of empty places, and different operations for different samples of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cifar_dist.errors import UserError

Fill = tuple[int, ...]
"""Colour of a place that an operation leaves empty, in 0..255: one number for each channel, or one for all."""

BLACK: Fill = (0,)


def fill_color(fill: Fill, images: Tensor) -> Tensor:
    """``fill`` in the dtype and on the device of ``images`` [n, c, h, w]: [c or 1, 1, 1].

    Raises:
        UserError: neither one number nor one for each channel.
    """
    if len(fill) not in (1, images.shape[1]):
        raise UserError(f"fill {list(fill)} must be one number or {images.shape[1]}, one for each channel")
    return torch.tensor(fill, dtype=images.dtype).to(images.device)[:, None, None]


Operation = Callable[[Tensor, Tensor], Tensor]
"""(images of the group [m, ...], their rows in the batch int64 [m]) -> new images of the same shape and dtype."""


def apply_by_group(images: Tensor, group: Tensor, operations: Sequence[Operation | None]) -> Tensor:
    """Operation ``group[i]`` applied to image i.

    Args:
        images: [n, ...], left alone.
        group: int64 [n], an index into ``operations``.
        operations: None leaves the images as they are.

    Returns:
        A new tensor like ``images``.
    """
    order = torch.argsort(group, stable=True)
    # The one place that waits for the device: the sizes of the groups decide what is launched.
    sizes = torch.bincount(group, minlength=len(operations)).tolist()
    # A sort, a concatenation and the way back move whole images; writing into rows of a tensor is many times slower.
    parts = zip(operations, images.index_select(0, order).split(sizes), order.split(sizes), strict=True)
    done = [part if operation is None or not len(rows) else operation(part, rows) for operation, part, rows in parts]
    return torch.cat(done).index_select(0, torch.argsort(order))


def apply_where(images: Tensor, chosen: Tensor, operation: Operation) -> Tensor:
    """``operation`` on the images where ``chosen`` (bool [n]) holds."""
    return apply_by_group(images, chosen.to(torch.int64), (None, operation))
