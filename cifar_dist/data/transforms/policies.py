"""RandAugment, TrivialAugment and AutoAugment: which operations, in which order, how strongly, for each sample.

A policy is a few steps; a step is an operation and a magnitude for each sample. All three draw from the operations
below, whose names and magnitudes are torchvision's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_dist.data.randomness import integers, uniform
from cifar_dist.data.transforms import color, tone
from cifar_dist.data.transforms.common import BLACK, Fill, Operation, apply_in_turn
from cifar_dist.data.transforms.geometry import affine
from cifar_dist.errors import UserError

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"),
)
"""In torchvision's order. RandAugment and TrivialAugment draw from all but the last."""

_IDENTITY, _SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y, _ROTATE = range(6)
_SIGNED = range(_SHEAR_X, OPERATIONS.index("Posterize"))  # these go either way with equal probability

# The five geometric operations are one group: an affine map with five kinds of parameters.
_GROUP = torch.tensor([max(index - _ROTATE + 1, int(index > _IDENTITY)) for index in range(len(OPERATIONS))])

Step = tuple[Tensor, Tensor]
"""For each sample the operation, int64 [n], an index into OPERATIONS, and the magnitude, float32 [n]."""


def apply_steps(images: Tensor, steps: Sequence[Step], fill: Fill = BLACK) -> Tensor:
    """One operation a step on each image, with its own magnitude.

    Args:
        images: uint8 [n, c, h, w].
        steps: in their order, at least one. Magnitudes: shear: the tangent; translate: pixels, rounded towards 0;
            rotate: degrees, counter-clockwise; brightness, colour, contrast, sharpness: the factor less 1;
            posterize: bits; solarize: the threshold in [0, 1]; of no meaning to the others.
        fill: colour of what a geometric operation leaves empty.
    """
    group = _GROUP.to(images.device)
    groups = torch.stack([group[operation] for operation, _ in steps])
    return apply_in_turn(images, groups, [_by_group(*step, fill) for step in steps])


def _by_group(operation: Tensor, magnitude: Tensor, fill: Fill) -> Sequence[Operation | None]:
    """What each group of ``_GROUP`` does to its images."""

    def geometric(part: Tensor, rows: Tensor) -> Tensor:
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
    middle = torch.tensor([images.shape[3] / 2, images.shape[2] / 2], dtype=torch.float64).to(images.device)
    sheared = (operation == _SHEAR_X) | (operation == _SHEAR_Y)
    return affine(
        images,
        angle=only(_ROTATE, -magnitude),
        translate=torch.stack([only(which, magnitude.trunc()) for which in (_TRANSLATE_X, _TRANSLATE_Y)], dim=1),
        shear=torch.stack([only(which, degrees) for which in (_SHEAR_X, _SHEAR_Y)], dim=1),
        center=torch.where(sheared[:, None], 0, middle),  # AutoAugment shears from the top left corner
        fill=fill,
    )


def _magnitudes(
    bins: int, shear: float, translate: tuple[float, float], rotate: float, enhance: float, posterize: int
) -> Tensor:
    """float32 [operations, bins]: each operation's magnitude at each level.

    Args:
        bins: number of levels, at least 2.
        shear, rotate, enhance: the largest tangent, angle and factor less 1.
        translate: the most pixels along x and y.
        posterize: the most bits that are lost.
    """
    table = torch.zeros(len(OPERATIONS), bins)
    most = [shear, shear, *translate, rotate, enhance, enhance, enhance, enhance]
    for index, largest in zip(_SIGNED, most, strict=True):
        table[index] = torch.linspace(0.0, largest, bins)
    table[OPERATIONS.index("Posterize")] = (8 - torch.arange(bins) / ((bins - 1) / posterize)).round()
    table[OPERATIONS.index("Solarize")] = torch.linspace(1.0, 0.0, bins)
    return table


def _auto_augment_magnitudes(bins: int, height: int, width: int) -> Tensor:
    """Those of AutoAugment and RandAugment, which translate by a part of the image."""
    return _magnitudes(bins, 0.3, (150.0 / 331.0 * width, 150.0 / 331.0 * height), 30.0, 0.9, 4)


@dataclass(frozen=True)
class _Policy:
    """What the three have in common: their steps, one after the other."""

    fill: Fill = BLACK

    def steps(self, seed: int, epoch: int, ids: Tensor, height: int, width: int) -> Iterator[Step]:
        raise NotImplementedError

    def __call__(self, images: Tensor, seed: int, epoch: int, ids: Tensor) -> Tensor:
        steps = list(self.steps(seed, epoch, ids, *images.shape[2:]))
        return apply_steps(images, steps, self.fill) if steps else images


@dataclass(frozen=True)
class RandAugment(_Policy):
    """Cubuk et al., *RandAugment: Practical automated data augmentation*, arXiv:1909.13719.

    Attributes:
        operations: how many are applied, each drawn from all.
        magnitude: how strong they are, a level in 0..bins - 1.
        bins: number of levels.
        fill: colour of what a geometric operation leaves empty.

    Raises:
        UserError: a number that makes no sense.
    """

    operations: int = 2
    magnitude: int = 9
    bins: int = 31

    def __post_init__(self) -> None:
        if self.operations < 0:
            raise UserError(f"rand-augment operations {self.operations} must not be negative")
        if self.bins < 2 or not 0 <= self.magnitude < self.bins:
            raise UserError(f"rand-augment magnitude {self.magnitude} must be in 0..{self.bins - 1} (bins - 1)")

    def steps(self, seed: int, epoch: int, ids: Tensor, height: int, width: int) -> Iterator[Step]:
        level = _auto_augment_magnitudes(self.bins, height, width)[:, self.magnitude].to(ids.device)
        for place in range(self.operations):
            operation = integers(seed, epoch, ids, "rand-augment", len(OPERATIONS) - 1, 2 * place)
            yield operation, _either_way(operation, level[operation], seed, epoch, ids, "rand-augment", 2 * place + 1)


@dataclass(frozen=True)
class TrivialAugmentWide(_Policy):
    """Müller and Hutter, *TrivialAugment: Tuning-free yet state-of-the-art data augmentation*, arXiv:2103.10158.

    One operation on each image, at a random level out of ``bins`` of the wide space.
    """

    bins: int = 31

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise UserError(f"trivial-augment bins {self.bins} must be at least 2")

    def steps(self, seed: int, epoch: int, ids: Tensor, height: int, width: int) -> Iterator[Step]:
        operation = integers(seed, epoch, ids, "trivial-augment", len(OPERATIONS) - 1, 0)
        level = integers(seed, epoch, ids, "trivial-augment", self.bins, 1)
        table = _magnitudes(self.bins, 0.99, (32.0, 32.0), 135.0, 0.99, 6).to(ids.device)
        yield operation, _either_way(operation, table[operation, level], seed, epoch, ids, "trivial-augment", 2)


# Operation, probability, level out of 10.
_CIFAR10: Sequence[tuple[tuple[str, float, int], tuple[str, float, int]]] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)


@dataclass(frozen=True)
class AutoAugment(_Policy):
    """The policy found on CIFAR-10 (Cubuk et al., *AutoAugment: Learning augmentation policies*, arXiv:1805.09501).

    One of its 25 pairs of operations for each image, each operation with its own probability.
    """

    def steps(self, seed: int, epoch: int, ids: Tensor, height: int, width: int) -> Iterator[Step]:
        pair = integers(seed, epoch, ids, "auto-augment", len(_CIFAR10), 0)
        table = _auto_augment_magnitudes(10, height, width)
        for place in range(2):
            entries = [both[place] for both in _CIFAR10]
            indices = [OPERATIONS.index(name) for name, _, _ in entries]
            probability = torch.tensor([probability for _, probability, _ in entries]).to(ids.device)
            level = table[indices, [level for _, _, level in entries]].to(ids.device)
            wanted = uniform(seed, epoch, ids, "auto-augment", 2 * place + 1) < probability[pair]
            operation = torch.where(wanted, torch.tensor(indices).to(ids.device)[pair], _IDENTITY)
            yield operation, _either_way(operation, level[pair], seed, epoch, ids, "auto-augment", 2 * place + 2)


def _either_way(
    operation: Tensor, magnitude: Tensor, seed: int, epoch: int, ids: Tensor, purpose: str, draw: int
) -> Tensor:
    """``magnitude`` with a random sign for the operations that have one."""
    signed = (operation >= _SIGNED.start) & (operation < _SIGNED.stop)
    return torch.where(signed & (uniform(seed, epoch, ids, purpose, draw) < 0.5), -magnitude, magnitude)
