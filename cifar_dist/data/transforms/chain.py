"""The transforms that a recipe asks for, in the order in which they are applied."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cifar_dist.config import AugmentConfig
from cifar_dist.data.transforms.color import ColorJitter, RandomGray
from cifar_dist.data.transforms.common import Fill
from cifar_dist.data.transforms.erasing import RandomErasing
from cifar_dist.data.transforms.geometry import RandomAffine, RandomPerspective
from cifar_dist.data.transforms.policies import AutoAugment, RandAugment, TrivialAugmentWide

Transform = Callable[[Tensor, int, int, Tensor], Tensor]
"""(uint8 images [n, c, h, w], seed, epoch, ids int64 [n]) -> images of the same shape."""


def build_transforms(config: AugmentConfig, fill: Fill) -> list[Transform]:
    """Policy, affine map, perspective, jitter, gray, erasing: those that are not off.

    Args:
        config: the recipe's.
        fill: colour of what an operation leaves empty.

    Raises:
        UserError: a range that makes no sense.
    """
    policies: dict[str, Transform] = {
        "randaugment": RandAugment(fill=fill, operations=config.operations, magnitude=config.magnitude),
        "trivialaugment": TrivialAugmentWide(fill=fill),
        "autoaugment": AutoAugment(fill=fill),
    }
    brightness, contrast, saturation, hue = config.jitter
    affine = RandomAffine(
        degrees=config.rotation,
        translate=(config.translate, config.translate),
        scale=config.scale,
        shear=(config.shear, config.shear),
        fill=fill,
    )
    chain: list[tuple[bool, Transform]] = [
        (affine != RandomAffine(fill=fill), affine),
        (config.perspective > 0, RandomPerspective(p=config.perspective, fill=fill)),
        (any(config.jitter), ColorJitter(brightness, contrast, saturation, hue)),
        (config.gray > 0, RandomGray(config.gray)),
        (config.erasing > 0, RandomErasing(p=config.erasing, fill=fill)),
    ]
    first = [policies[config.policy]] if config.policy != "none" else []
    return [*first, *(transform for wanted, transform in chain if wanted)]
