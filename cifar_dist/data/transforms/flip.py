"""Horizontal flip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cifar_dist.data.transforms import Rearrangement, Samples

if TYPE_CHECKING:
    from torch import Tensor

    from cifar_dist.data.operations.rearrange import Sources


@dataclass(frozen=True)
class Flip(Rearrangement):
    """Mirror half of the images left to right."""

    name: Literal["flip"] = "flip"
    kind: Literal["random", "alternating"] = "random"
    """random: with probability 1/2 in each epoch; alternating (airbench): a random half in the first epoch, then each
    image in every second epoch, so that two epochs show both sides."""

    def chosen(self, samples: Samples) -> Tensor:
        """Select the samples to mirror, bool [n].

        ``alternating`` is from Keller Jordan, *94% on CIFAR-10 in 3.29 seconds*, arXiv:2404.00498, 3.6.
        """
        if self.kind == "random":
            return samples.uniform("flip") < 0.5
        return (samples.of_all_epochs().integers("flip", 2) + samples.epoch) % 2 == 1

    def sources(self, sources: Sources, samples: Samples) -> Sources:
        return sources.mirrored(self.chosen(samples))
