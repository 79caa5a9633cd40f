"""Random perspective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cifar_dist.config.section import require, require_probability
from cifar_dist.data.transforms import Samples, Transform

if TYPE_CHECKING:
    from torch import Tensor

    from cifar_dist.data.operations.grouping import Rows


@dataclass(frozen=True)
class Perspective(Transform):
    """Move each corner inwards by a random amount, as torchvision's RandomPerspective."""

    name: Literal["perspective"] = "perspective"
    p: float = 0.5
    """Probability that an image is changed."""
    distortion: float = 0.5
    """Largest move of a corner, as a fraction of half the image."""

    def __post_init__(self) -> None:
        require_probability(self.p)
        require(0 <= self.distortion <= 1, f"distortion {self.distortion} must be in [0, 1]")

    def corners(self, samples: Samples, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Draw the corners before and after: int64 [4, 2] and [n, 4, 2], clockwise from the top left."""
        import torch

        from cifar_dist.data.operations.constants import constant

        most_x, most_y = (int(self.distortion * (side // 2)) + 1 for side in (width, height))
        x = samples.integers("perspective", most_x, range(4))
        y = samples.integers("perspective", most_y, range(4, 8))
        right, bottom = width - 1, height - 1
        start = constant(((0, 0), (right, 0), (right, bottom), (0, bottom)), torch.int64, samples.ids.device)
        moved_x = torch.stack([x[0], right - x[1], right - x[2], x[3]], dim=1)
        moved_y = torch.stack([y[0], y[1], bottom - y[2], bottom - y[3]], dim=1)
        return start, torch.stack([moved_x, moved_y], dim=2)

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        from cifar_dist.data.operations.geometry import perspective, perspective_coefficients
        from cifar_dist.data.operations.grouping import apply_where

        chosen = samples.uniform("perspective", 8) < self.p
        start, end = self.corners(samples, *images.shape[2:])
        coefficients = perspective_coefficients(start.expand_as(end), end)

        def move(part: Tensor, rows: Rows) -> Tensor:
            return perspective(part, coefficients[rows], samples.fill)

        return apply_where(images, chosen, move, static=samples.static)
