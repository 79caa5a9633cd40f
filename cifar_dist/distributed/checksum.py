"""Whether tensors of several processes have the same bits."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer type of each size, in bytes, as which the bits of a tensor can be viewed."""


def checksum(tensor: Tensor) -> Tensor:
    """Return two sums over the bits of a tensor: int64 [2], on its device; the second one depends on their order.

    Integers, because a sum of floats depends on the number of threads, which may differ between machines.

    Args:
        tensor: of any shape, with 1, 2, 4 or 8 bytes an element.
    """
    bits = tensor.detach().flatten().view(INTEGERS[tensor.element_size()]).long()
    places = torch.arange(1, len(bits) + 1, device=bits.device)
    return torch.stack([bits.sum(), (bits * places).sum()])
