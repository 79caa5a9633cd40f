"""MixUp and CutMix: a sample and its partner, and the labels of both.

The partner of a sample is the one before it in the global batch (torchvision rolls its batches by one, too), so it is
a function of the epoch's order and not of the rank. What is done to the partner is the partner's own: any process
makes the same pixels of it from its id, so a process that has n samples augments n + 1. How much is mixed is drawn for
each sample; torchvision draws once for a batch, from the same distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_dist.data.randomness import bits, uniform
from cifar_dist.data.transforms.erasing import inside_boxes
from cifar_dist.errors import UserError


def mixup(images: Tensor, partner_images: Tensor, ratio: Tensor) -> Tensor:
    """``ratio * image + (1 - ratio) * partner``; float32 [n, c, h, w] twice, ratio float32 [n]."""
    ratio = ratio[:, None, None, None]
    return images * ratio + partner_images * (1 - ratio)


def cutmix(images: Tensor, partner_images: Tensor, boxes: Tensor) -> Tensor:
    """The partner's pixels in ``boxes`` (int64 [n, 4]: top, left, height, width); [n, c, h, w] of any dtype."""
    return torch.where(inside_boxes(boxes, *images.shape[2:])[:, None], partner_images, images)


def mix_labels(labels: Tensor, partner_labels: Tensor, ratio: Tensor, classes: int) -> Tensor:
    """float32 [n, classes]: ``ratio`` float32 [n] on the label, the rest on the partner's; labels int64 [n]."""
    own, others = (torch.nn.functional.one_hot(which, classes) for which in (labels, partner_labels))
    return own * ratio[:, None] + others * (1 - ratio[:, None])


def _beta(seed: int, epoch: int, ids: Tensor, purpose: str, alpha: float) -> Tensor:
    """float32 [n], Beta(alpha, alpha): its quantile function at a uniform number.

    Computed on the CPU, where each number has the same bits whatever is computed beside it; Beta(1, 1) is uniform
    and needs no such trip.
    """
    # The middle of each of the 2**24 steps that uniform numbers come in: 0 would be the far end of a long tail.
    u = uniform(seed, epoch, ids, purpose, 0).to(torch.float64) + 2.0**-25
    if alpha == 1:
        return u.to(torch.float32)
    from scipy.special import betaincinv  # type: ignore[import-untyped]  # slow to import

    return torch.from_numpy(betaincinv(alpha, alpha, u.cpu().numpy())).to(ids.device, torch.float32)


@dataclass(frozen=True)
class MixUp:
    """mixup (Zhang et al., *mixup: Beyond empirical risk minimization*, arXiv:1710.09412).

    Attributes:
        alpha: the part of the sample itself is drawn from Beta(alpha, alpha). Above 0 (else: UserError).
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check(self.alpha, "mixup")

    def ratio(self, seed: int, epoch: int, ids: Tensor) -> Tensor:
        """float32 [n]: the sample's own part, of the image and of the label."""
        return _beta(seed, epoch, ids, "mixup", self.alpha)

    def __call__(
        self, images: Tensor, partner_images: Tensor, seed: int, epoch: int, ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mixed images and the ``ratio`` for :func:`mix_labels`."""
        ratio = self.ratio(seed, epoch, ids)
        return mixup(images, partner_images, ratio), ratio


@dataclass(frozen=True)
class CutMix:
    """CutMix (Yun et al., *CutMix: Regularization strategy to train strong classifiers*, arXiv:1905.04899).

    Attributes:
        alpha: the part of the sample itself is drawn from Beta(alpha, alpha). Above 0 (else: UserError).
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check(self.alpha, "cutmix")

    def boxes(self, seed: int, epoch: int, ids: Tensor, height: int, width: int) -> Tensor:
        """int64 [n, 4]: top, left, height, width of what is the partner's.

        A box of the image's shape around a uniform centre; what sticks out of the image is cut off.
        """
        reach = 0.5 * (1 - _beta(seed, epoch, ids, "cutmix", self.alpha)).sqrt()
        edges = []
        for side, draw in zip((height, width), bits(seed, epoch, ids, "cutmix", range(1, 3)).unbind(), strict=True):
            middle = draw % side
            half = (reach * side).to(torch.int64)
            edges.append(((middle - half).clamp(min=0), (middle + half).clamp(max=side)))
        (top, bottom), (left, right) = edges
        return torch.stack([top, left, bottom - top, right - left], dim=1)

    def __call__(
        self, images: Tensor, partner_images: Tensor, seed: int, epoch: int, ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mixed images and the ``ratio`` for :func:`mix_labels`: the part of the pixels that stays."""
        height, width = images.shape[2:]
        boxes = self.boxes(seed, epoch, ids, height, width)
        taken = (boxes[:, 2] * boxes[:, 3]).to(torch.float32)
        return cutmix(images, partner_images, boxes), 1 - taken / (height * width)


def _check(alpha: float, name: str) -> None:
    if not alpha > 0:
        raise UserError(f"{name} alpha {alpha} must be above 0; to mix nothing, leave {name} out")
