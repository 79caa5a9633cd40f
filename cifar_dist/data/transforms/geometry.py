"""Where a pixel comes from: affine maps and perspective, nearest interpolation.

Each output pixel looks its source up, so an image is read once whatever the map is made of. Angles are in degrees,
lengths in pixels, points are (x, y) with the origin in the top left corner.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_dist.data.randomness import integers, uniform
from cifar_dist.data.transforms.common import BLACK, Fill, apply_where, fill_color
from cifar_dist.errors import UserError


def affine(
    images: Tensor,
    *,
    angle: Tensor | None = None,
    translate: Tensor | None = None,
    scale: Tensor | None = None,
    shear: Tensor | None = None,
    center: Tensor | None = None,
    fill: Fill = BLACK,
) -> Tensor:
    """Rotate, shear, scale and translate, as ``torchvision.transforms.v2.functional.affine``.

    Args:
        images: uint8 [n, c, h, w].
        angle: [n], degrees, clockwise.
        translate: [n, 2], pixels right and down.
        scale: [n], above 0.
        shear: [n, 2], degrees along x and y.
        center: [n, 2], the point that rotation, shear and scale leave in place; None: the image's centre.
        fill: colour of what lies outside.
    """
    count, _, height, width = images.shape
    zero = torch.zeros(count, dtype=torch.float64, device=images.device)
    rotation = zero if angle is None else torch.deg2rad(angle.to(torch.float64))
    # Rotation * shear_y * shear_x has the determinant 1, so its inverse is its adjugate.
    a, c = torch.cos(rotation), torch.sin(rotation)
    b, d = -c, a
    if shear is not None:
        shear_x, shear_y = torch.deg2rad(shear.to(torch.float64)).unbind(1)
        a, c = (along(rotation - shear_y) / torch.cos(shear_y) for along in (torch.cos, torch.sin))
        b = -(a * torch.tan(shear_x) + torch.sin(rotation))
        d = torch.cos(rotation) - c * torch.tan(shear_x)
    x_from_x, x_from_y, y_from_x, y_from_y = d, -b, -c, a
    if scale is not None:
        x_from_x, x_from_y, y_from_x, y_from_y = (x / scale.to(torch.float64) for x in (d, -b, -c, a))
    x_offset = y_offset = shift_x = shift_y = center_x = center_y = zero
    if translate is not None:
        shift_x, shift_y = translate.to(torch.float64).unbind(1)
    if center is not None:
        # The origin moves to the image's centre, between its two middle pixels.
        half = torch.tensor([width / 2, height / 2], dtype=torch.float64).to(images.device)
        center_x, center_y = (center.to(torch.float64) - half).unbind(1)
    if translate is not None or center is not None:
        x_offset = center_x - x_from_x * (center_x + shift_x) - x_from_y * (center_y + shift_y)
        y_offset = center_y - y_from_x * (center_x + shift_x) - y_from_y * (center_y + shift_y)

    def single(numbers: Tensor) -> Tensor:
        return numbers.to(torch.float32)[:, None, None]

    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    source_x = single(x_from_x) * x + single(x_offset + (width - 1) / 2) + single(x_from_y) * y
    source_y = single(y_from_x) * x + (single(y_from_y) * y + single(y_offset + (height - 1) / 2))
    return _nearest(images, source_x, source_y, fill)


def rotate(images: Tensor, angle: Tensor, fill: Fill = BLACK) -> Tensor:
    """Rotate uint8 [n, c, h, w] by ``angle`` [n] degrees, counter-clockwise (the other way than :func:`affine`)."""
    return affine(images, angle=-angle, fill=fill)


def perspective(images: Tensor, coefficients: Tensor, fill: Fill = BLACK) -> Tensor:
    """Change the perspective of uint8 [n, c, h, w].

    Args:
        images: uint8 [n, c, h, w].
        coefficients: [n, 8], a to h of the source of output pixel (x, y), both measured to the pixel's middle:
            ``((a x + b y + c) / (g x + h y + 1), (d x + e y + f) / (g x + h y + 1))``.
        fill: colour of what lies outside.
    """
    _, _, height, width = images.shape
    a, b, c, d, e, f, g, h = coefficients.to(torch.float32)[:, :, None, None].unbind(1)
    x = torch.arange(width, device=images.device) + 0.5
    y = (torch.arange(height, device=images.device) + 0.5)[:, None]
    depth = g * x + (h * y + 1)
    return _nearest(images, (a * x + (b * y + c)) / depth - 0.5, (d * x + (e * y + f)) / depth - 0.5, fill)


def perspective_coefficients(start: Tensor, end: Tensor) -> Tensor:
    """The coefficients of :func:`perspective` that take the corners ``start`` to ``end``.

    Args:
        start, end: [n, 4, 2], four points (x, y) each, no three on a line.

    Returns:
        float64 [n, 8].
    """
    target, (x, y) = start.to(torch.float64), end.to(torch.float64).unbind(2)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    for_x = torch.stack([x, y, one, zero, zero, zero, -target[..., 0] * x, -target[..., 0] * y], dim=2)
    for_y = torch.stack([zero, zero, zero, x, y, one, -target[..., 1] * x, -target[..., 1] * y], dim=2)
    # Corners that fell on one line have no map; whatever comes out then is no reason to stop a run.
    coefficients: Tensor
    coefficients, _ = torch.linalg.solve_ex(torch.cat([for_x, for_y], dim=1), target.transpose(1, 2).flatten(1))
    return coefficients


def _nearest(images: Tensor, x: Tensor, y: Tensor, fill: Fill) -> Tensor:
    """The pixels nearest to the places ``x``, ``y`` float32 [n, h, w]; a tie goes to the even one."""
    count, channels, height, width = images.shape
    # One pixel of the fill on each side catches all that lies outside: no mask, which would cost more than the rest.
    framed = images.new_empty(count, channels, height + 2, width + 2)
    framed[:] = fill_color(fill, images)
    framed[:, :, 1:-1, 1:-1] = images
    column, row = (
        places.nan_to_num_(nan=-1).round_().clamp_(-1, size).to(torch.int32) + 1
        for places, size in ((x, width), (y, height))
    )
    source = (row.mul_(width + 2) + column).to(torch.int64).view(count, 1, height * width)
    return framed.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(images)


@dataclass(frozen=True)
class RandomAffine:
    """Rotation, translation, scale and shear, each uniform in its range, as ``torchvision``'s.

    Attributes:
        degrees: rotation in [-degrees, degrees].
        translate: at most this fraction of the width and of the height, in whole pixels.
        scale: smallest and largest factor.
        shear: along x and along y, in [-shear, shear] degrees.
        fill: colour of what lies outside.

    Raises:
        UserError: a range that makes no sense.
    """

    degrees: float = 0.0
    translate: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: tuple[float, float] = (0.0, 0.0)
    fill: Fill = BLACK

    def __post_init__(self) -> None:
        if self.degrees < 0:
            raise UserError(f"affine degrees {self.degrees} must not be negative: they are turned both ways")
        if not all(0 <= part <= 1 for part in self.translate):
            raise UserError(f"affine translate {list(self.translate)} must be fractions of the image, in [0, 1]")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"affine scale {list(self.scale)} must be two increasing numbers above 0")
        if not all(0 <= angle < 90 for angle in self.shear):
            raise UserError(f"affine shear {list(self.shear)} must be degrees in [0, 90)")

    def parameters(
        self, seed: int, epoch: int, ids: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """angle [n], translate [n, 2], scale [n] and shear [n, 2], float32, as :func:`affine` takes them."""

        draws = uniform(seed, epoch, ids, "affine", range(6))

        def between(low: float, high: float, draw: int) -> Tensor:
            return low + draws[draw] * (high - low)

        far_x, far_y = self.translate[0] * width, self.translate[1] * height
        return (
            between(-self.degrees, self.degrees, 0),
            torch.stack([between(-far_x, far_x, 1), between(-far_y, far_y, 2)], dim=1).round(),
            between(*self.scale, 3),
            torch.stack([between(-angle, angle, 4 + axis) for axis, angle in enumerate(self.shear)], dim=1),
        )

    def __call__(self, images: Tensor, seed: int, epoch: int, ids: Tensor) -> Tensor:
        angle, translate, scale, shear = self.parameters(seed, epoch, ids, *images.shape[2:])
        return affine(
            images,
            angle=angle if self.degrees else None,
            translate=translate if any(self.translate) else None,
            scale=scale if self.scale != (1.0, 1.0) else None,
            shear=shear if any(self.shear) else None,
            fill=self.fill,
        )


@dataclass(frozen=True)
class RandomPerspective:
    """Each corner moved inwards by a random part, as ``torchvision``'s.

    Attributes:
        distortion: how far a corner may move, as a fraction of half the image, in [0, 1].
        p: probability that an image is changed.
        fill: colour of what lies outside.

    Raises:
        UserError: a fraction outside of [0, 1].
    """

    distortion: float = 0.5
    p: float = 0.5
    fill: Fill = BLACK

    def __post_init__(self) -> None:
        if not (0 <= self.distortion <= 1 and 0 <= self.p <= 1):
            raise UserError(f"perspective distortion {self.distortion} and p {self.p} must be in [0, 1]")

    def corners(self, seed: int, epoch: int, ids: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where the corners are and where they go: int64 [4, 2] and [n, 4, 2], clockwise from the top left."""
        most_x, most_y = (int(self.distortion * (side // 2)) + 1 for side in (width, height))
        x = integers(seed, epoch, ids, "perspective", most_x, range(4))
        y = integers(seed, epoch, ids, "perspective", most_y, range(4, 8))
        right, bottom = width - 1, height - 1
        start = torch.tensor([[0, 0], [right, 0], [right, bottom], [0, bottom]])
        moved_x = torch.stack([x[0], right - x[1], right - x[2], x[3]], dim=1)
        moved_y = torch.stack([y[0], y[1], bottom - y[2], bottom - y[3]], dim=1)
        return start.to(ids.device), torch.stack([moved_x, moved_y], dim=2)

    def __call__(self, images: Tensor, seed: int, epoch: int, ids: Tensor) -> Tensor:
        chosen = uniform(seed, epoch, ids, "perspective", 8) < self.p
        start, end = self.corners(seed, epoch, ids, *images.shape[2:])
        coefficients = perspective_coefficients(start.expand_as(end), end)
        return apply_where(images, chosen, lambda part, rows: perspective(part, coefficients[rows], self.fill))
