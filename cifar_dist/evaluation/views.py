"""Test-time augmentation: the views of an image whose predictions are averaged.

The levels ``mirror`` and ``translate`` are airbench's (Keller Jordan, arXiv:2404.00498, section 3.6 and its code);
N random views are the recipe's own augmentation of single images, determined by (seed, view, sample id), so that they
are the same on any number of processes and devices. The first view of every level is the image itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor

from cifar_dist.config import AugmentConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.transforms.flip import Flip

View = tuple[float, Tensor]
"""A weight and images, float32 [n, c, h, w]; the weights of one batch sum to 1."""

Views = Callable[[Tensor, Tensor], Iterator[View]]
"""Maps (uint8 images [n, h, w, c], ids int64 [n]) to views, one at a time.

Whoever gets a view may change it in place, as the network of a plug-in may: no later view is computed from it.
"""

_SHIFT = 1  # pixels by which translate moves, to the upper left and the lower right


def make_views(tta: str, config: AugmentConfig, seed: int, mean: tuple[float, ...], normalize: Normalize) -> Views:
    """Return the views of a level.

    Args:
        tta: ``0``, ``mirror``, ``translate`` or a number N, as :attr:`~cifar_dist.config.Config.distinct_tta` has it.
        config: the recipe's augmentation; N random views use it without mixing.
        seed: seed of the random views.
        mean: per-channel fill of random crops, in [0, 1].
        normalize: converts pixels to the model's input.
    """
    if tta == "mirror":
        return lambda images, ids: _mirrored(normalize(images), 1.0)
    if tta == "translate":
        return lambda images, ids: _translated(normalize(images))
    count = max(1, int(tta))
    single = (transform for transform in config.transforms if not transform.mixes)
    # Alternating flips alternate by epoch; views flip independently instead.
    own = tuple(Flip() if isinstance(transform, Flip) else transform for transform in single)
    augment = Augment(AugmentConfig(transforms=own), seed, mean, normalize)

    def random_views(images: Tensor, ids: Tensor) -> Iterator[View]:
        for view in range(count):
            # Negative epochs, so that no view repeats a training image. The first view is the image itself.
            yield 1.0 / count, normalize(images) if view == 0 else augment(images, ids, -view)

    return random_views


def _mirrored(images: Tensor, weight: float) -> Iterator[View]:
    mirrored = images.flip(-1)  # before `images` are given away
    yield 0.5 * weight, images
    yield 0.5 * weight, mirrored


def _translated(images: Tensor) -> Iterator[View]:
    height, width = images.shape[-2:]
    padded = F.pad(images, (_SHIFT,) * 4, mode="reflect")
    yield from _mirrored(images, 0.5)
    for offset in (0, 2 * _SHIFT):
        window = padded[:, :, offset : offset + height, offset : offset + width]
        yield from _mirrored(window.clone(), 0.25)  # the windows overlap
