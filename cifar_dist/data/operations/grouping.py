"""Helpers of the operations: the fill colour, and different operations for different samples of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cifar_dist.data.operations.constants import constant
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
    return constant(fill, images.dtype, images.device)[:, None, None]


Rows = Tensor | slice
"""Rows of a batch: int64 [m], or a slice of all."""

Operation = Callable[[Tensor, Rows], Tensor]
"""Maps (images of the group [m, ...], their rows in the batch) to new images of the same shape and dtype."""

_ALL = slice(None)


def apply_in_turn(
    images: Tensor, groups: Tensor, operations: Sequence[Sequence[Operation | None]], *, static: bool = False
) -> Tensor:
    """Apply operation ``groups[0, i]`` of the first turn to image i, then ``groups[1, i]`` of the second, and so on.

    Args:
        images: [n, c, h, w], not modified.
        groups: int64 [turns, n], indices into each turn's operations.
        operations: of each turn, the same number in all of them; None leaves the images unchanged.
        static: apply every operation to all images and select, so that nothing depends on the sizes of the groups: for
            a device that would have to be waited for. The pixels are the same.

    Returns:
        A new tensor like ``images``.
    """
    return _apply_to_all(images, groups, operations) if static else _apply_by_group(images, groups, operations)


def _apply_to_all(images: Tensor, groups: Tensor, operations: Sequence[Sequence[Operation | None]]) -> Tensor:
    for turn, group in zip(operations, groups.unbind(), strict=True):
        result = images
        for index, work in enumerate(turn):
            if work is not None:
                result = torch.where((group == index)[:, None, None, None], work(images, _ALL), result)
        images = result
    return images


def _apply_by_group(images: Tensor, groups: Tensor, operations: Sequence[Sequence[Operation | None]]) -> Tensor:
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


def apply_where(images: Tensor, chosen: Tensor, operation: Operation, *, static: bool = False) -> Tensor:
    """Apply ``operation`` to the images selected by ``chosen`` (bool [n]); ``static`` as in :func:`apply_in_turn`."""
    return apply_in_turn(images, chosen.to(torch.int64)[None], [(None, operation)], static=static)
