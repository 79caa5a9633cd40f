"""What a network is shown of a batch, and what it should answer: augmented images, mixed where the recipe mixes."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.config import AugmentConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import Batch
from cifar_dist.data.operations.mixing import mix_labels
from cifar_dist.data.transforms import Mixing, occurrences


class Mix:
    """:class:`Augment`, then the recipe's mixing transforms: one draw says by which a sample is mixed, or by none.

    Args:
        config: with which probability, and how much.
        augment: applied to each sample once, also to that before the first, which is another process's.
        classes: how many there are.
    """

    def __init__(self, config: AugmentConfig, augment: Augment, classes: int) -> None:
        self._augment = augment
        self._classes = classes
        self._mixes = [(mix, place) for mix, place in occurrences(config.transforms) if isinstance(mix, Mixing)]

    @property
    def mixes(self) -> bool:
        """Whether batches must come with the sample before their first."""
        return bool(self._mixes)

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """The images float32 [n, c, h, w], and the targets: labels int64 [n], or float32 [n, classes] when mixed."""
        augmented = self._augment(batch.images, batch.image_ids, epoch)
        if not self._mixes:
            return augmented, batch.labels
        partners, images = augmented[:-1], augmented[1:]
        samples = self._augment.samples(batch.ids, epoch)
        draw = samples.uniform("mix")
        ratio = torch.ones_like(draw)
        result, below = images, 0.0
        for mix, occurrence in self._mixes:
            chosen = (draw >= below) & (draw < below + mix.p)
            mixed, own = mix(images, partners, samples.of_occurrence(occurrence))
            result = torch.where(chosen[:, None, None, None], mixed, result)
            ratio = torch.where(chosen, own, ratio)
            below += mix.p
        return result, mix_labels(batch.labels, batch.image_labels[:-1], ratio, self._classes)
