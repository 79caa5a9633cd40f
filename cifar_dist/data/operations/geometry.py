"""Affine maps and perspective, with nearest interpolation.

Each output pixel is read from its source, so an image is read once, however many maps are combined. Angles are in
degrees, lengths in pixels, points are (x, y) with the origin in the top left corner.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.data.operations.constants import constant
from cifar_dist.data.operations.grouping import BLACK, Fill, fill_color


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
    """Rotate, shear, scale and translate like ``torchvision.transforms.v2.functional.affine``.

    Args:
        images: uint8 [n, c, h, w].
        angle: [n], degrees, clockwise.
        translate: [n, 2], pixels right and down.
        scale: [n], above 0.
        shear: [n, 2], degrees along x and y.
        center: [n, 2], the point that rotation, shear and scale leave in place; None: the image's centre.
        fill: colour of pixels from outside the image.
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
        half = constant((width / 2, height / 2), torch.float64, images.device)
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


def perspective(images: Tensor, coefficients: Tensor, fill: Fill = BLACK) -> Tensor:
    """Change the perspective of uint8 [n, c, h, w].

    Args:
        images: uint8 [n, c, h, w].
        coefficients: [n, 9], a to i of the source of output pixel (x, y), both measured at the pixel's centre:
            ``((a x + b y + c) / (g x + h y + i), (d x + e y + f) / (g x + h y + i))``.
        fill: colour of pixels from outside the image.
    """
    _, _, height, width = images.shape
    a, b, c, d, e, f, g, h, i = coefficients.to(torch.float32)[:, :, None, None].unbind(1)
    x = torch.arange(width, device=images.device) + 0.5
    y = (torch.arange(height, device=images.device) + 0.5)[:, None]
    depth = g * x + (h * y + i)
    return _nearest(images, (a * x + (b * y + c)) / depth - 0.5, (d * x + (e * y + f)) / depth - 0.5, fill)


def perspective_coefficients(start: Tensor, end: Tensor) -> Tensor:
    """Compute the coefficients of :func:`perspective` that map the corners ``start`` to ``end``.

    Args:
        start, end: [n, 4, 2], four points (x, y) each, no three on a line.

    Returns:
        float64 [n, 9]; the last one is 1, or 0 where the horizon goes through the origin.
    """
    to_start, to_end = (_from_square(points.to(torch.float64)) for points in (start, end))
    # The inverse of a map is its adjugate, up to a factor, and its rows are the cross products of columns.
    x, y, one = to_end.unbind(2)
    back = torch.stack([_cross(y, one), _cross(one, x), _cross(x, y)], dim=1)
    # Of corners that are integers all of this is exact, in any order; only the quotient rounds.
    full = sum(to_start[:, :, k, None] * back[:, None, k] for k in range(3))
    assert isinstance(full, Tensor)
    last = full[:, 2:, 2:]
    return (full / torch.where(last == 0, 1.0, last)).flatten(1)


def _from_square(corners: Tensor) -> Tensor:
    """Return the map of the unit square to ``corners`` [n, 4, 2], float64 [n, 3, 3], up to a factor.

    Heckbert: *Fundamentals of Texture Mapping and Image Warping*, 1989, 2.2.3.
    """
    x, y = corners.unbind(2)
    (x0, x1, x2, x3), (y0, y1, y2, y3) = x.unbind(1), y.unbind(1)
    sum_x, sum_y = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    g = sum_x * (y3 - y2) - (x3 - x2) * sum_y
    h = (x1 - x2) * sum_y - sum_x * (y1 - y2)
    i = (x1 - x2) * (y3 - y2) - (x3 - x2) * (y1 - y2)
    rows = [(i * (p1 - p0) + g * p1, i * (p3 - p0) + h * p3, i * p0) for p0, p1, p3 in ((x0, x1, x3), (y0, y1, y3))]
    return torch.stack([*rows[0], *rows[1], g, h, i], dim=1).view(-1, 3, 3)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Return the cross products of two vectors, [n, 3] each."""
    (a0, a1, a2), (b0, b1, b2) = a.unbind(1), b.unbind(1)
    return torch.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], dim=1)


def _nearest(images: Tensor, x: Tensor, y: Tensor, fill: Fill) -> Tensor:
    """Read the pixels nearest to the positions ``x``, ``y`` float32 [n, h, w]; ties round to even."""
    count, channels, height, width = images.shape
    # One pixel of fill on each side serves all positions outside; a mask would cost more than everything else.
    framed = images.new_empty(count, channels, height + 2, width + 2)
    framed[:] = fill_color(fill, images)
    framed[:, :, 1:-1, 1:-1] = images
    column, row = (
        places.nan_to_num_(nan=-1).round_().clamp_(-1, size).to(torch.int32) + 1
        for places, size in ((x, width), (y, height))
    )
    source = (row.mul_(width + 2) + column).to(torch.int64).view(count, 1, height * width)
    return framed.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(images)
