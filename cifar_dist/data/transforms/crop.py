"""Random crop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cifar_dist.config.section import require_at_least
from cifar_dist.data.transforms import Rearrangement, Samples
from cifar_dist.errors import UserError

if TYPE_CHECKING:
    from cifar_dist.data.operations.rearrange import Sources


@dataclass(frozen=True)
class Crop(Rearrangement):
    """Crop to the original size at a random position, after padding each side."""

    name: Literal["crop"] = "crop"
    pad: int = 4
    """Pixels of padding on each side, fewer than an image has."""
    fill: Literal["constant", "reflect"] = "reflect"
    """Content of the padding: the colour ``augment.mean`` (constant), or the image mirrored at its edge (reflect)."""

    def __post_init__(self) -> None:
        require_at_least(self, pad=0)

    def check(self, height: int, width: int, channels: int) -> None:
        if self.pad >= min(height, width):  # too few to reflect, and some crops would show nothing of the image
            raise UserError(
                f"augment.crop.pad {self.pad} is too large for images of {width}x{height}; "
                f"use at most {min(height, width) - 1}"
            )

    def sources(self, sources: Sources, samples: Samples) -> Sources:
        down, right = (samples.integers("crop", 2 * self.pad + 1, range(2)) - self.pad).unbind()
        moved = sources.shifted(down, right)
        return moved.reflected() if self.fill == "reflect" else moved.filled()
