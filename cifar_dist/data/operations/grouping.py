"""What the operations share: the colour of empty places, and different operations for different samples of a batch."""

from __future__ import annotations

import functools
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
    return _color(fill, images.dtype, images.device)


@functools.lru_cache(maxsize=64)
def _color(fill: Fill, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept on the device, because every batch asks for the same one."""
    return torch.tensor(fill, dtype=dtype).to(device)[:, None, None]


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
    return apply_in_turn(images, group[None], [operations])


def apply_in_turn(images: Tensor, groups: Tensor, operations: Sequence[Sequence[Operation | None]]) -> Tensor:
    """Operation ``groups[0, i]`` of the first turn applied to image i, then ``groups[1, i]`` of the second, and so on.

    Args:
        images: [n, ...], left alone.
        groups: int64 [turns, n], indices into each turn's operations.
        operations: of each turn, as many in all of them.

    Returns:
        A new tensor like ``images``.
    """
    count = len(operations[0])
    order = torch.argsort(groups, dim=1, stable=True)
    back = torch.argsort(order, dim=1)
    # The one place that waits for the device: the sizes of the groups decide what is launched. So of all turns at once.
    sizes = (groups[:, None] == torch.arange(count, device=groups.device)[:, None]).sum(dim=2).tolist()
    for turn, sort, unsort, split in zip(operations, order, back, sizes, strict=True):
        # A sort, a concatenation and the way back move whole images; writing into rows of a tensor is far slower.
        groups_of = zip(turn, images.index_select(0, sort).split(split), sort.split(split), strict=True)
        done = [part if work is None or not len(rows) else work(part, rows) for work, part, rows in groups_of]
        images = torch.cat(done).index_select(0, unsort)
    return images


def apply_where(images: Tensor, chosen: Tensor, operation: Operation) -> Tensor:
    """``operation`` on the images where ``chosen`` (bool [n]) holds."""
    return apply_by_group(images, chosen.to(torch.int64), (None, operation))
