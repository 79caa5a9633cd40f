"""AutoAugment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cifar_dist.data.transforms import Policy, Samples

if TYPE_CHECKING:
    from cifar_dist.data.operations.policies import Round

# Operation, probability, level out of 10.
CIFAR10: Sequence[tuple[tuple[str, float, int], tuple[str, float, int]]] = (
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
class AutoAugment(Policy):
    """Apply one of the 25 pairs of operations that were found on CIFAR-10 (Cubuk et al., arXiv:1805.09501)."""

    name: Literal["autoaugment"] = "autoaugment"

    def rounds(self, samples: Samples, height: int, width: int) -> Iterator[Round]:
        import torch

        from cifar_dist.data.operations.constants import constant
        from cifar_dist.data.operations.policies import IDENTITY, OPERATIONS, apply_sign, auto_augment_magnitudes

        device = samples.ids.device
        pair = samples.integers("auto-augment", len(CIFAR10), 0)
        table = auto_augment_magnitudes(10, height, width, device)
        for place in range(2):
            names, probabilities, levels = zip(*(both[place] for both in CIFAR10), strict=True)
            operations = constant(tuple(map(OPERATIONS.index, names)), torch.int64, device)[pair]
            level = constant(levels, torch.int64, device)[pair]
            wanted = (
                samples.uniform("auto-augment", 2 * place + 1) < constant(probabilities, torch.float32, device)[pair]
            )
            operation = torch.where(wanted, operations, IDENTITY)
            negative = samples.uniform("auto-augment", 2 * place + 2) < 0.5
            yield operation, apply_sign(operation, table[operations, level], negative)
