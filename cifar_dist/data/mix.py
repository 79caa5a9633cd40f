"""What a network is shown of a batch, and what it should answer: augmented images, mixed where the recipe mixes."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.config import AugmentConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import Batch
from cifar_dist.data.randomness import uniform
from cifar_dist.data.transforms.mixing import CutMix, MixUp, mix_labels


class Mix:
    """:class:`Augment`, then MixUp of some samples and CutMix of others, each drawn for itself.

    Args:
        config: with which probability, and how much.
        seed: the run's seed.
        augment: applied to each sample once, also to that before the first, which is another process's.
        classes: how many there are.
    """

    def __init__(self, config: AugmentConfig, seed: int, augment: Augment, classes: int) -> None:
        self._seed = seed
        self._augment = augment
        self._classes = classes
        mixes = ((config.mixup, MixUp(config.mix_alpha)), (config.cutmix, CutMix(config.mix_alpha)))
        self._mixes = [(probability, mix) for probability, mix in mixes if probability > 0]

    @property
    def mixes(self) -> bool:
        """Whether batches must come with the sample before their first."""
        return bool(self._mixes)

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """The images float32 [n, c, h, w], and the targets: labels int64 [n], or float32 [n, classes] when mixed."""
        if not self._mixes:
            return self._augment(batch.images, batch.ids, epoch), batch.labels
        assert batch.before is not None
        ids, labels, pixels = (
            torch.cat(pair)
            for pair in (
                (batch.before.ids, batch.ids),
                (batch.before.labels, batch.labels),
                (batch.before.images, batch.images),
            )
        )
        augmented = self._augment(pixels, ids, epoch)
        partner, images = augmented[:-1], augmented[1:]
        draw = uniform(self._seed, epoch, batch.ids, "mix")
        ratio = torch.ones_like(draw)
        result, below = images, 0.0
        for probability, mix in self._mixes:
            chosen = (draw >= below) & (draw < below + probability)
            mixed, own = mix(images, partner, self._seed, epoch, batch.ids)
            result = torch.where(chosen[:, None, None, None], mixed, result)
            ratio = torch.where(chosen, own, ratio)
            below += probability
        return result, mix_labels(batch.labels, labels[:-1], ratio, self._classes)
