"""Settings of the augmentation of training images."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from cifar_dist.config.choice import Choice
from cifar_dist.config.section import Section, require

_PACKAGE = "cifar_dist.data.transforms"


class _ShippedTransforms(Mapping[str, "type[TransformConfig]"]):
    """The settings class of each file in ``cifar_dist/data/transforms/``, by file name; imported on first access.

    The classes live beside their implementation, so that a transform is one file. Their modules are the only ones of
    another room that this package imports; they import nothing slow either.
    """

    @functools.cached_property
    def _names(self) -> list[str]:
        folder = Path(__file__).parents[1] / "data" / "transforms"
        return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> type[TransformConfig]:
        if name not in self:
            raise KeyError(name)
        module = importlib.import_module(f"{_PACKAGE}.{name}")
        classes = [
            item for item in vars(module).values() if isinstance(item, type) and issubclass(item, TransformConfig)
        ]
        (found,) = (item for item in classes if item.name == name)
        return found


@dataclass(frozen=True)
class TransformConfig(Choice):
    """One transform: its ``name`` and its own settings.

    Attributes:
        mixes: whether it mixes samples with each other; such transforms come last, on finished images.
    """

    variants: ClassVar[Mapping[str, type[TransformConfig]]] = _ShippedTransforms()
    derived_from: ClassVar[str] = "Transform, Rearrangement or Mixing of cifar_dist.data.transforms"
    mixes: ClassVar[bool] = False

    name: str = ""
    """The transform, or ``path/to/file.py:Class`` or ``package.module:Class`` for one from outside the package."""


def _default_transforms() -> tuple[TransformConfig, ...]:
    return tuple(TransformConfig.variants[name]() for name in ("crop", "flip"))


@dataclass(frozen=True)
class AugmentConfig(Section):
    """Augmentation of training images, on the device, from counter-based randomness."""

    named_items: ClassVar[str] = "transforms"

    transforms: tuple[TransformConfig, ...] = field(default_factory=_default_transforms)
    """The transforms, in the order in which they are applied: ``[{ name = "crop", pad = 2 }, { name = "flip" }]``, or
    ``[]`` for none. ``--augment.crop.pad 2`` changes one setting of the transform of that name in the list."""
    mean: tuple[float, ...] = ()
    """Per-channel mean to subtract, in [0, 1]; empty: the training split's, from the manifest. Also the colour of what
    transforms leave empty."""
    std: tuple[float, ...] = ()
    """Per-channel standard deviation to divide by, in [0, 1]; empty: the training split's, from the manifest."""

    def __post_init__(self) -> None:
        _check_mixing(self.transforms)
        require(len(self.mean) == len(self.std), "mean and std must have the same number of channels")
        mean = list(self.mean)
        require(all(0 <= m <= 1 for m in mean), f"mean {mean} must be in [0, 1]; divide pixel values by 255")
        std = list(self.std)
        require(all(0 < s <= 1 for s in std), f"std {std} must be above 0 and at most 1; divide pixel values by 255")


def _check_mixing(transforms: tuple[TransformConfig, ...]) -> None:
    """Require that mixing transforms come last and that each sample is mixed in at most one way."""
    mixing = [transform for transform in transforms if transform.mixes]
    for before, after in itertools.pairwise(transforms):
        require(
            not before.mixes or after.mixes or not callable(after),  # not callable: of a plug-in that is not imported
            f"transforms: {before.name} mixes finished images and {after.name} follows it; put {before.name} last",
        )
    total = math.fsum(asdict(transform)["p"] for transform in mixing)  # 0.34 + 0.56 + 0.1 is 1, rounded once
    names = " and ".join(transform.name for transform in mixing)
    require(total <= 1, f"transforms: {names} are alternatives; the sum of their p is {total:g}, above 1")
