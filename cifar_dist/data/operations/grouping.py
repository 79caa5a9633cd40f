"""Helpers of the operations: the fill colour, and different operations for different samples of a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cifar_dist.errors import UserError

Fill = tuple[int, ...]
"""Colour of pixels that an operation leaves empty, in 0..255: one number for each channel, or one for all."""

BLACK: Fill = (0,)


def fill_color(fill: Fill, images: Tensor) -> Tensor:
    """Convert ``fill`` to the dtype and device of ``images`` [n, c, h, w]: [c or 1, 1, 1].

    Raises:
        UserError: it is neither one number nor one for each channel.
    """
    if len(fill) not in (1, images.shape[1]):
        raise UserError(f"fill {list(fill)} must be one number or {images.shape[1]}, one for each channel")
    return _color(fill, images.dtype, images.device)


@functools.lru_cache(maxsize=64)
def _color(fill: Fill, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cache the colour on the device, because every batch uses the same one."""
    return torch.tensor(fill, dtype=dtype).to(device)[:, None, None]


Operation = Callable[[Tensor, Tensor], Tensor]
"""Maps (images of the group [m, ...], their rows in the batch int64 [m]) to new images of the same shape and dtype."""


def apply_by_group(images: Tensor, group: Tensor, operations: Sequence[Operation | None]) -> Tensor:
    """Apply operation ``group[i]`` to image i.

    Args:
        images: [n, ...], not modified.
        group: int64 [n], an index into ``operations``.
        operations: None leaves the images unchanged.

    Returns:
        A new tensor like ``images``.
    """
    return apply_in_turn(images, group[None], [operations])


def apply_in_turn(images: Tensor, groups: Tensor, operations: Sequence[Sequence[Operation | None]]) -> Tensor:
    """Apply operation ``groups[0, i]`` of the first turn to image i, then ``groups[1, i]`` of the second, and so on.

    Args:
        images: [n, ...], not modified.
        groups: int64 [turns, n], indices into each turn's operations.
        operations: of each turn, the same number in all of them.

    Returns:
        A new tensor like ``images``.
    """
    count = len(operations[0])
    order = torch.argsort(groups, dim=1, stable=True)
    back = torch.argsort(order, dim=1)
    # The group sizes determine what is launched, so this waits for the device: once, for all turns together.
    sizes = (groups[:, None] == torch.arange(count, device=groups.device)[:, None]).sum(dim=2).tolist()
    for turn, sort, unsort, split in zip(operations, order, back, sizes, strict=True):
        # Sort, concatenate and sort back move entire images; writing into rows of a tensor is far slower.
        groups_of = zip(turn, images.index_select(0, sort).split(split), sort.split(split), strict=True)
        done = [part if work is None or not len(rows) else work(part, rows) for work, part, rows in groups_of]
        images = torch.cat(done).index_select(0, unsort)
    return images


def apply_where(images: Tensor, chosen: Tensor, operation: Operation) -> Tensor:
    """Apply ``operation`` to the images selected by ``chosen`` (bool [n])."""
    return apply_by_group(images, chosen.to(torch.int64), (None, operation))
