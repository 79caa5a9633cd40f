"""Enlarge images before they enter a network, as ``model.image_size`` does."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def enlarge_input(model: nn.Module, side: int) -> None:
    """Enlarge the input images of ``model`` to ``side`` x ``side`` pixels, with a hook that keeps weight names."""
    model._enlarged_side = side  # type: ignore[assignment]
    model.register_forward_pre_hook(_enlarge_input)


def _enlarge_input(self: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Return the enlarged images. A lambda would do the same, but TorchScript cannot compile one."""
    return enlarged(inputs[0], self._enlarged_side)  # type: ignore[arg-type]


def enlarged(images: Tensor, side: int) -> Tensor:
    """Enlarge images, float [n, c, h, w], to ``side`` x ``side`` pixels."""
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)
