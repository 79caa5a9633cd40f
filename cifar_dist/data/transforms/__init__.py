"""The transforms of augmentation, one a file, named as in a recipe: ``crop.py`` is ``{ name = "crop" }``.

A transform is a frozen dataclass: its fields are its settings, and calling it is what it does to a batch. It decides
from counter-based randomness alone (:class:`Samples`), so what is done to a sample depends neither on the batch, nor on
its place in it, nor on the rank. There are three kinds:

- :class:`Transform` changes pixels;
- :class:`Rearrangement` moves them: consecutive ones are one read of the images;
- :class:`Mixing` blends a sample with the one before it, and their labels.

A recipe's settings are read and checked without torch, so the modules here import torch, and what uses it
(:mod:`cifar_dist.data.operations`), inside their methods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from cifar_dist.config import TransformConfig
from cifar_dist.config.section import require_probability
from cifar_dist.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from cifar_dist.data.operations.policies import Step
    from cifar_dist.data.operations.rearrange import Sources

__all__ = ["Mixing", "Policy", "Rearrangement", "Samples", "Transform", "check_colors", "occurrences"]


@dataclass(frozen=True)
class Samples:
    """The samples of a batch, and the random numbers that each has for itself.

    Attributes:
        seed: the run's seed.
        epoch: which pass over the data.
        ids: int64 [n], sample ids within the split.
        fill: the dataset's mean colour in 0..255, a number for each channel: for what a transform leaves empty.
        occurrence: how many transforms of the same class come before in the list. A second one draws other numbers.
    """

    seed: int
    epoch: int
    ids: Tensor
    fill: tuple[int, ...] = (0,)
    occurrence: int = 0

    def bits(self, purpose: str, draw: int | range = 0) -> Tensor:
        """int64 in [0, 2**63), [n], or [len(draw), n]: see :func:`cifar_dist.data.randomness.bits`."""
        from cifar_dist.data.randomness import bits

        return bits(self.seed, self.epoch, self.ids, self._own(purpose), draw)

    def uniform(self, purpose: str, draw: int | range = 0) -> Tensor:
        """float32 in [0, 1), [n], or [len(draw), n]: see :func:`cifar_dist.data.randomness.uniform`."""
        from cifar_dist.data.randomness import uniform

        return uniform(self.seed, self.epoch, self.ids, self._own(purpose), draw)

    def integers(self, purpose: str, below: int, draw: int | range = 0) -> Tensor:
        """int64 in [0, below), [n], or [len(draw), n]: see :func:`cifar_dist.data.randomness.integers`."""
        from cifar_dist.data.randomness import integers

        return integers(self.seed, self.epoch, self.ids, self._own(purpose), below, draw)

    def of_occurrence(self, occurrence: int) -> Samples:
        """The same samples, for a transform that comes after ``occurrence`` others of its class."""
        return replace(self, occurrence=occurrence)

    def of_all_epochs(self) -> Samples:
        """The same samples with numbers that do not change from epoch to epoch."""
        return replace(self, epoch=0)

    def _own(self, purpose: str) -> str:
        return f"{purpose} {self.occurrence + 1}" if self.occurrence else purpose


class Transform(TransformConfig):
    """Changes pixels, each sample's for itself. Implement :meth:`__call__`.

    Attributes:
        planar: it is faster on, or needs, images that are contiguous as [n, c, h, w]. Without, it takes them as they
            are, and a list without such transforms saves two copies of the batch.
    """

    planar: ClassVar[bool] = True

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        """New images, uint8 [n, c, h, w], of ``images`` of the same shape, which are left alone."""
        raise NotImplementedError

    def check(self, height: int, width: int, channels: int) -> None:
        """Refuse images that cannot be transformed so.

        Raises:
            UserError: with what to set instead.
        """


def occurrences(transforms: Sequence[TransformConfig]) -> Iterator[tuple[TransformConfig, int]]:
    """Each transform, and how many of its class come before it."""
    seen: Counter[type] = Counter()
    for transform in transforms:
        yield transform, seen[type(transform)]
        seen[type(transform)] += 1


def check_colors(name: str, channels: int) -> None:
    """Raises:
    UserError: images of another number of channels than 3.
    """
    if channels != 3:
        raise UserError(
            f"{name} changes colours, and the images have {channels} channels; remove it from augment.transforms"
        )


class Rearrangement(Transform):
    """Moves pixels within their image, rows and columns each for themselves. Implement :meth:`sources`."""

    planar: ClassVar[bool] = False

    def sources(self, sources: Sources, samples: Samples) -> Sources:
        """Where pixels come from before the transform, of where they come from after it."""
        raise NotImplementedError

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        from cifar_dist.data.operations.rearrange import rearrange

        return rearrange(images, [lambda sources: self.sources(sources, samples)], samples.fill)


class Policy(Transform):
    """Applies a few of torchvision's operations, each sample its own, one after the other. Implement :meth:`steps`."""

    def steps(self, samples: Samples, height: int, width: int) -> Iterator[Step]:
        """Which operation at each step, and its magnitude: see :mod:`cifar_dist.data.operations.policies`."""
        raise NotImplementedError

    def check(self, height: int, width: int, channels: int) -> None:
        check_colors(self.name, channels)

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        from cifar_dist.data.operations.policies import apply_steps

        steps = list(self.steps(samples, *images.shape[2:]))
        return apply_steps(images, steps, samples.fill) if steps else images


@dataclass(frozen=True)
class Mixing(TransformConfig):
    """Blends samples with their partners. Implement :meth:`__call__`.

    The partner of a sample is the one before it in the global batch (torchvision rolls its batches by one, too), so it
    is a function of the epoch's order and not of the rank. What is done to the partner is the partner's own: any
    process computes the same pixels of it from its id, so a process that has n samples augments n + 1. How much is
    mixed is drawn for each sample; torchvision draws once for a batch, from the same distribution.
    """

    mixes: ClassVar[bool] = True

    p: float = 1.0
    """Probability that a sample is mixed in this way. Several ways are alternatives of one draw."""

    def __post_init__(self) -> None:
        require_probability("p", self.p)

    def __call__(self, images: Tensor, partners: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """All samples mixed, those that were not chosen too.

        Args:
            images: float32 [n, c, h, w], augmented and normalised.
            partners: likewise, each sample's partner.
            samples: of ``images``.

        Returns:
            The mixed images, and the sample's own share of its label, float32 [n].
        """
        raise NotImplementedError
