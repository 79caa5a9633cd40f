"""The operations of RandAugment, TrivialAugment and AutoAugment, and their magnitude at each level.

A policy is a sequence of rounds; a round is an operation and a magnitude for each sample. Names and magnitudes are
those of torchvision.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from cifar_dist.data.operations import color, tone
from cifar_dist.data.operations.constants import constant
from cifar_dist.data.operations.geometry import affine
from cifar_dist.data.operations.grouping import BLACK, Fill, Operation, Rows, apply_in_turn

OPERATIONS = tuple(
    """
    Identity ShearX ShearY TranslateX TranslateY Rotate Brightness Color Contrast Sharpness Posterize Solarize
    AutoContrast Equalize Invert
    """.split()
)
"""In torchvision's order. RandAugment and TrivialAugment draw from all except the last."""

IDENTITY, _SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y, _ROTATE = range(6)
_SIGNED = range(_SHEAR_X, OPERATIONS.index("Posterize"))  # the sign of these magnitudes is random

# The five geometric operations are one group: an affine map with five kinds of parameters.
_GROUP = tuple(max(index - _ROTATE + 1, int(index > IDENTITY)) for index in range(len(OPERATIONS)))

Round = tuple[Tensor, Tensor]
"""For each sample the operation, int64 [n], an index into OPERATIONS, and the magnitude, float32 [n]."""


def apply_rounds(images: Tensor, rounds: Sequence[Round], fill: Fill = BLACK, *, static: bool = False) -> Tensor:
    """Apply each round's operation to each image, with its own magnitude.

    Args:
        images: uint8 [n, c, h, w].
        rounds: in their order, at least one. Magnitudes: shear: the tangent; translate: pixels, rounded towards 0;
            rotate: degrees, counter-clockwise; brightness, colour, contrast, sharpness: the factor less 1;
            posterize: bits; solarize: the threshold in [0, 1]; ignored by the others.
        fill: colour of pixels that a geometric operation leaves empty.
        static: see :func:`~cifar_dist.data.operations.grouping.apply_in_turn`.
    """
    group = constant(_GROUP, torch.int64, images.device)
    groups = torch.stack([group[operation] for operation, _ in rounds])
    return apply_in_turn(images, groups, [_by_group(*one, fill) for one in rounds], static=static)


def _by_group(operation: Tensor, magnitude: Tensor, fill: Fill) -> Sequence[Operation | None]:
    """Return the operation of each group of ``_GROUP``."""

    def geometric(part: Tensor, rows: Rows) -> Tensor:
        return _geometric(part, operation[rows], magnitude[rows], fill)

    return (
        None,
        geometric,
        lambda part, rows: color.adjust_brightness(part, 1 + magnitude[rows]),
        lambda part, rows: color.adjust_saturation(part, 1 + magnitude[rows]),
        lambda part, rows: color.adjust_contrast(part, 1 + magnitude[rows]),
        lambda part, rows: tone.adjust_sharpness(part, 1 + magnitude[rows]),
        lambda part, rows: tone.posterize(part, magnitude[rows]),
        lambda part, rows: tone.solarize(part, 255 * magnitude[rows]),
        lambda part, _: tone.autocontrast(part),
        lambda part, _: tone.equalize(part),
        lambda part, _: tone.invert(part),
    )


def _geometric(images: Tensor, operation: Tensor, magnitude: Tensor, fill: Fill) -> Tensor:
    magnitude = magnitude.to(torch.float64)

    def only(which: int, amount: Tensor) -> Tensor:
        return torch.where(operation == which, amount, 0)

    degrees = torch.rad2deg(torch.atan(magnitude))
    middle = constant((images.shape[3] / 2, images.shape[2] / 2), torch.float64, images.device)
    sheared = (operation == _SHEAR_X) | (operation == _SHEAR_Y)
    return affine(
        images,
        angle=only(_ROTATE, -magnitude),
        translate=torch.stack([only(which, magnitude.trunc()) for which in (_TRANSLATE_X, _TRANSLATE_Y)], dim=1),
        shear=torch.stack([only(which, degrees) for which in (_SHEAR_X, _SHEAR_Y)], dim=1),
        center=torch.where(sheared[:, None], 0, middle),  # AutoAugment shears from the top left corner
        fill=fill,
    )


@functools.lru_cache(maxsize=64)
def magnitudes(
    bins: int,
    shear: float,
    translate: tuple[float, float],
    rotate: float,
    enhance: float,
    posterize: int,
    device: torch.device,
) -> Tensor:
    """Compute each operation's magnitude at each level: float32 [operations, bins]. It is shared: do not change it.

    Args:
        bins: number of levels, at least 2.
        shear, rotate, enhance: the largest tangent, angle and factor less 1.
        translate: the largest shift along x and y, in pixels.
        posterize: the largest number of bits to drop.
        device: of the result.
    """
    table = torch.zeros(len(OPERATIONS), bins)
    most = [shear, shear, *translate, rotate, enhance, enhance, enhance, enhance]
    for index, largest in zip(_SIGNED, most, strict=True):
        table[index] = torch.linspace(0.0, largest, bins)
    table[OPERATIONS.index("Posterize")] = (8 - torch.arange(bins) / ((bins - 1) / posterize)).round()
    table[OPERATIONS.index("Solarize")] = torch.linspace(1.0, 0.0, bins)
    return table.to(device)


def auto_augment_magnitudes(bins: int, height: int, width: int, device: torch.device) -> Tensor:
    """Compute the magnitudes of AutoAugment and RandAugment, which translate by a fraction of the image."""
    return magnitudes(bins, 0.3, (150.0 / 331.0 * width, 150.0 / 331.0 * height), 30.0, 0.9, 4, device)


def apply_sign(operation: Tensor, magnitude: Tensor, negative: Tensor) -> Tensor:
    """Negate ``magnitude`` where ``negative`` (bool [n]) is set and the operation has a sign."""
    signed = (operation >= _SIGNED.start) & (operation < _SIGNED.stop)
    return torch.where(signed & negative, -magnitude, magnitude)
