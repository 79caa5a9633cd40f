"""Random brightness, contrast, saturation and hue."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cifar_dist.config.section import require, require_at_least
from cifar_dist.data.transforms import Samples, Transform

if TYPE_CHECKING:
    from torch import Tensor

_ORDERS = tuple(itertools.permutations(range(4)))


@dataclass(frozen=True)
class Jitter(Transform):
    """Change brightness, contrast, saturation and hue, each image in its own order, as torchvision's ColorJitter."""

    needs_colors: ClassVar[bool] = True

    name: Literal["jitter"] = "jitter"
    brightness: float = 0.0
    """Largest change of the brightness factor from 1, either way; the factor is at least 0."""
    contrast: float = 0.0
    """Largest change of the contrast factor, likewise."""
    saturation: float = 0.0
    """Largest change of the saturation factor, likewise."""
    hue: float = 0.0
    """Largest shift of the hue either way, as a fraction of the colour circle; at most 0.5."""

    def __post_init__(self) -> None:
        require_at_least(self, brightness=0, contrast=0, saturation=0)
        require(0 <= self.hue <= 0.5, f"hue {self.hue} must be in [0, 0.5]")
        require(
            any((self.brightness, self.contrast, self.saturation, self.hue)),
            "brightness, contrast, saturation and hue are all 0; set one of them, or remove jitter from the list",
        )

    def parameters(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Draw the order of the four changes, int64 [n, 4], and the amount of each, float32 [n, 4]."""
        import torch

        from cifar_dist.data.operations.constants import constant

        orders = constant(_ORDERS, torch.int64, samples.ids.device)
        order = orders[samples.integers("jitter", len(_ORDERS), 0)]
        ranges = [(max(0.0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)]
        ranges.append((-self.hue, self.hue))
        draws = samples.uniform("jitter", range(1, 5))
        amounts = [low + draw * (high - low) for draw, (low, high) in zip(draws.unbind(), ranges, strict=True)]
        return order, torch.stack(amounts, dim=1)

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        from cifar_dist.data.operations import color
        from cifar_dist.data.operations.grouping import apply_in_turn

        order, amounts = self.parameters(samples)
        brightness, contrast, saturation, hue = amounts.unbind(1)
        operations = (
            (lambda part, rows: color.adjust_brightness(part, brightness[rows])) if self.brightness else None,
            (lambda part, rows: color.adjust_contrast(part, contrast[rows])) if self.contrast else None,
            (lambda part, rows: color.adjust_saturation(part, saturation[rows])) if self.saturation else None,
            (lambda part, rows: color.adjust_hue(part, hue[rows])) if self.hue else None,
        )
        return apply_in_turn(images, order.T, [operations] * 4, static=samples.static)
