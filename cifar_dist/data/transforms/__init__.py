"""The transforms of augmentation, one a file, named as in a recipe: ``crop.py`` is ``{ name = "crop" }``.

A transform is a frozen dataclass: its fields are its settings, and calling it transforms a batch. Its randomness is
counter-based (:class:`Samples`), so the result for a sample does not depend on the batch, the position in it, or the
rank. There are three kinds:

- :class:`Transform` changes pixels;
- :class:`Rearrangement` moves pixels: consecutive ones read the images once;
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
from cifar_dist.formatting import counted

if TYPE_CHECKING:
    from torch import Tensor

    from cifar_dist.data.keys import Keys
    from cifar_dist.data.operations.policies import Round
    from cifar_dist.data.operations.rearrange import Sources

__all__ = ["Mixing", "Policy", "Rearrangement", "Samples", "Transform", "is_plug_in", "occurrences"]


@dataclass(frozen=True)
class Samples:
    """The samples of a batch, and the random numbers of each.

    Attributes:
        seed: the run's seed.
        epoch: number of the pass over the data; int64 [] in a function that is compiled for all epochs.
        ids: int64 [n], sample ids within the split.
        fill: the colour ``augment.mean`` in 0..255, for each channel: of pixels that a transform leaves empty.
        keys: of the draws, on the device; None where they are computed from seed and epoch.
        occurrence: number of transforms of the same class earlier in the list, so that a repeated one draws others.
    """

    seed: int
    epoch: int | Tensor
    ids: Tensor
    fill: tuple[int, ...] = (0,)
    occurrence: int = 0
    keys: Keys | None = None

    @property
    def static(self) -> bool:
        """Whether every operation is to be applied to all samples, because nobody may wait for the device's numbers."""
        return self.keys is not None

    def bits(self, purpose: str, draw: int | range = 0) -> Tensor:
        """Draw int64 in [0, 2**63), [n] or [len(draw), n]; see :func:`cifar_dist.data.randomness.bits`."""
        from cifar_dist.data.randomness import as_bits

        return as_bits(self._hash(purpose, draw))

    def uniform(self, purpose: str, draw: int | range = 0) -> Tensor:
        """Draw float32 in [0, 1), [n] or [len(draw), n]; multiples of 2**-24, exact on every device."""
        from cifar_dist.data.randomness import as_uniform

        return as_uniform(self._hash(purpose, draw))

    def integers(self, purpose: str, below: int, draw: int | range = 0) -> Tensor:
        """Draw int64 in [0, below), [n] or [len(draw), n]. The modulo bias is below ``below / 2**63``."""
        return self.bits(purpose, draw) % below

    def of(self, rows: slice) -> Samples:
        """Return a part of the samples."""
        return replace(self, ids=self.ids[rows])

    def of_occurrence(self, occurrence: int) -> Samples:
        """Return the same samples, for a transform that follows ``occurrence`` others of its class."""
        return replace(self, occurrence=occurrence)

    def of_all_epochs(self) -> Samples:
        """Return the same samples with random numbers that do not depend on the epoch."""
        return replace(self, epoch=0, keys=self.keys and self.keys.of_all_epochs())

    def _hash(self, purpose: str, draw: int | range) -> Tensor:
        from cifar_dist.data.randomness import hash_ids, scramble

        own = f"{purpose} {self.occurrence + 1}" if self.occurrence else purpose
        if self.keys is not None:
            return scramble(self.ids ^ self.keys(own, draw)[..., None])
        assert isinstance(self.epoch, int)
        return hash_ids(self.seed, self.epoch, self.ids, own, draw)


class Transform(TransformConfig):
    """Changes pixels, independently for each sample. Implement :meth:`__call__`.

    Attributes:
        planar: whether it requires, or is faster on, images that are contiguous as [n, c, h, w]. If no transform in the
            list does, two copies of the batch are saved.
        needs_colors: whether it requires images of three channels.
    """

    planar: ClassVar[bool] = True
    needs_colors: ClassVar[bool] = False

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        """Return transformed copies of ``images``, uint8 [n, c, h, w]."""
        raise NotImplementedError

    def check(self, height: int, width: int, channels: int) -> None:
        """Refuse images that the transform does not accept.

        Raises:
            UserError: the message says what to set instead.
        """
        if self.needs_colors and channels != 3:
            raise UserError(
                f"{self.name} changes colours, and the images have {counted(channels, 'channel')}; "
                "remove it from augment.transforms"
            )


def occurrences(transforms: Sequence[TransformConfig]) -> Iterator[tuple[TransformConfig, int]]:
    """Yield each transform with the number of transforms of its class before it."""
    seen: Counter[type] = Counter()
    for transform in transforms:
        yield transform, seen[type(transform)]
        seen[type(transform)] += 1


def is_plug_in(transform: TransformConfig) -> bool:
    """Whether a transform is not one of this package: it may change in place what it is given."""
    return not type(transform).__module__.startswith(f"{__name__}.")


class Rearrangement(Transform):
    """Moves pixels within their image, rows and columns independently. Implement :meth:`sources`."""

    planar: ClassVar[bool] = False

    def sources(self, sources: Sources, samples: Samples) -> Sources:
        """Map the sources of pixels after the transform to their sources before it."""
        raise NotImplementedError

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        from cifar_dist.data.operations.rearrange import rearrange

        return rearrange(images, [lambda sources: self.sources(sources, samples)], samples.fill)


class Policy(Transform):
    """Applies a sequence of torchvision's operations, a different one to each sample. Implement :meth:`rounds`."""

    needs_colors: ClassVar[bool] = True

    def rounds(self, samples: Samples, height: int, width: int) -> Iterator[Round]:
        """Yield each round's operations and magnitudes; see :mod:`cifar_dist.data.operations.policies`."""
        raise NotImplementedError

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        from cifar_dist.data.operations.policies import apply_rounds

        rounds = list(self.rounds(samples, *images.shape[2:]))
        return apply_rounds(images, rounds, samples.fill, static=samples.static) if rounds else images


@dataclass(frozen=True)
class Mixing(TransformConfig):
    """Blends samples with their partners. Implement :meth:`__call__`.

    The partner of a sample is the one before it in the global batch (torchvision also rolls its batches by one), so it
    depends on the epoch's order and not on the rank. The partner's augmentation is its own: any process computes the
    same pixels from its id, so a process that has n samples augments n + 1. The mixing ratio is drawn for each sample;
    torchvision draws it once for a batch, from the same distribution.
    """

    mixes: ClassVar[bool] = True

    p: float = 1.0
    """Probability that a sample is mixed by this transform. Several mixing transforms are alternatives of one draw. The
    training accuracy counts a sample's own label, even where its partner has the larger share: with MixUp at its
    defaults, a network that is always right has about half."""

    def __post_init__(self) -> None:
        require_probability(self.p)

    def __call__(self, images: Tensor, partners: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """Mix all samples, including those that will not be used.

        Args:
            images: float32 [n, c, h, w], augmented and normalised.
            partners: likewise, each sample's partner.
            samples: of ``images``.

        Returns:
            The mixed images, and the sample's own share of its label, float32 [n].
        """
        raise NotImplementedError
