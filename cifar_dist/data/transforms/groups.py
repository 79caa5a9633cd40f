"""Different operations for different samples of a batch, each computed only for the samples that want it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
