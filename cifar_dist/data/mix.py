"""Produce a batch's network input and targets: augmented images, mixed if the recipe says so."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.config import AugmentConfig
from cifar_dist.config.plugin_errors import describe_value
from cifar_dist.data.augment import Augment, is_like
from cifar_dist.data.batches import Batch
from cifar_dist.data.keys import Keys
from cifar_dist.data.operations.mixing import mix_labels
from cifar_dist.data.transforms import Mixing, Samples, is_plug_in, occurrences
from cifar_dist.errors import UserError


class Mix:
    """:class:`Augment`, then the recipe's mixing transforms: one draw per sample selects at most one of them.

    Args:
        config: the mixing transforms and their probabilities.
        augment: applied once to each sample, including the one before the first, which may be another process's.
        classes: number of classes.

    Raises:
        UserError: a plug-in does not return images and shares (when it is applied).
    """

    def __init__(self, config: AugmentConfig, augment: Augment, classes: int) -> None:
        self._augment = augment
        self._classes = classes
        self._mixes = [(mix, place) for mix, place in occurrences(config.transforms) if isinstance(mix, Mixing)]
        self._were_shares_checked = False

    @property
    def mixes(self) -> bool:
        """Whether batches must include the sample before their first."""
        return bool(self._mixes)

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Return images, float32 [n, c, h, w], and targets: labels int64 [n] or, if mixed, float32 [n, classes]."""
        return self.apply(batch.images, batch.image_labels, self._augment.samples(batch.image_ids, epoch))

    def samples(self, ids: Tensor, epoch: int | Tensor, keys: Keys) -> Samples:
        """Return the samples ``ids``, int64 [n], whose draws have the keys ``keys``."""
        return self._augment.samples(ids, epoch, keys)

    def apply(self, images: Tensor, labels: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """As a call, for uint8 ``images`` [m, h, w, c] of ``samples`` with ``labels`` int64 [m]; m is n, or n + 1."""
        augmented = self._augment.apply(images, samples)
        if not self._mixes:
            return augmented, labels
        partners, images, samples = augmented[:-1], augmented[1:], samples.of(slice(1, None))
        draw = samples.uniform("mix")
        ratio = torch.ones_like(draw)
        result, below = images, 0.0
        for mix, occurrence in self._mixes:
            chosen = (draw >= below) & (draw < below + mix.p)
            # A plug-in may change in place what it is given: images that others have as partners, or that stay unmixed.
            given = (images.clone(), partners.clone()) if is_plug_in(mix) else (images, partners)
            mixed, own = _checked(mix(*given, samples.of_occurrence(occurrence)), images, ratio, mix)
            if not self._were_shares_checked:  # of the first batch only: a GPU's numbers must be waited for
                _check_range(own, mix)
            result = torch.where(chosen[:, None, None, None], mixed, result)
            ratio = torch.where(chosen, own, ratio)
            below += mix.p
        self._were_shares_checked = True
        return result, mix_labels(labels[1:], labels[:-1], ratio, self._classes)


def _checked(result: object, images: Tensor, ratio: Tensor, mix: Mixing) -> tuple[Tensor, Tensor]:
    """Return what ``mix`` has made of ``images``, float32 [n, c, h, w]: others, and shares like ``ratio``, float32 [n].

    Raises:
        UserError: it is something else.
    """
    pair = tuple(result) if isinstance(result, tuple | list) else (result,)
    if len(pair) == 2 and is_like(pair[0], images) and is_like(pair[1], ratio):
        return pair[0], pair[1]
    returned = " and ".join(map(describe_value, pair)) or "nothing"
    raise UserError(
        f"augment.transforms: {mix.name} returned {returned}; return images, "
        f"{describe_value(images)}, and each sample's share of its own label, {describe_value(ratio)}"
    )


def _check_range(share: Tensor, mix: Mixing) -> None:
    """Refuse shares, float32 [n], that are not in [0, 1].

    Raises:
        UserError: the message quotes the first one.
    """
    wrong = share[~((share >= 0) & (share <= 1))]  # NaN is wrong, too
    if len(wrong):
        raise UserError(
            f"augment.transforms: {mix.name} returned a share of {wrong[0]:g}; a sample's share of its own label must "
            "be in [0, 1]"
        )
