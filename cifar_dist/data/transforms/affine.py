"""Random affine map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cifar_dist.config.section import require
from cifar_dist.data.transforms import Samples, Transform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Affine(Transform):
    """Rotate, translate, scale and shear, each uniform in its range, as torchvision's RandomAffine."""

    name: Literal["affine"] = "affine"
    rotation: float = 0.0
    """Rotate by up to this many degrees either way."""
    translate: float = 0.0
    """Move by up to this fraction of the image's side, in whole pixels, along both axes."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest factor by which the image is scaled."""
    shear: float = 0.0
    """Shear by up to this many degrees either way, along both axes."""

    def __post_init__(self) -> None:
        require(
            self.rotation >= 0,
            f"rotation {self.rotation} must not be negative; it applies both ways",
        )
        require(0 <= self.translate <= 1, f"translate {self.translate} must be a fraction of the image, in [0, 1]")
        require(0 < self.scale[0] <= self.scale[1], f"scale {list(self.scale)} must be two increasing numbers above 0")
        require(0 <= self.shear < 90, f"shear {self.shear} must be degrees in [0, 90)")
        require(
            any((self.rotation, self.translate, self.scale != (1.0, 1.0), self.shear)),
            "rotation, translate, scale and shear are all off; set one of them, or remove affine from the list",
        )

    def parameters(self, samples: Samples, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """angle [n], translate [n, 2], scale [n] and shear [n, 2], float32, as the operation takes them."""
        import torch

        draws = samples.uniform("affine", range(6))

        def between(low: float, high: float, draw: int) -> Tensor:
            return low + draws[draw] * (high - low)

        far_x, far_y = self.translate * width, self.translate * height
        return (
            between(-self.rotation, self.rotation, 0),
            torch.stack([between(-far_x, far_x, 1), between(-far_y, far_y, 2)], dim=1).round(),
            between(*self.scale, 3),
            torch.stack([between(-self.shear, self.shear, draw) for draw in (4, 5)], dim=1),
        )

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        from cifar_dist.data.operations.geometry import affine

        angle, translate, scale, shear = self.parameters(samples, *images.shape[2:])
        return affine(
            images,
            angle=angle if self.rotation else None,
            translate=translate if self.translate else None,
            scale=scale if self.scale != (1.0, 1.0) else None,
            shear=shear if self.shear else None,
            fill=samples.fill,
        )
