"""Two samples become one: their pixels, their labels, and the distribution of how much of each."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.data.operations.boxes import inside_boxes


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


def beta(uniform: Tensor, alpha: float) -> Tensor:
    """float32 [n], Beta(alpha, alpha): its quantile function at ``uniform``, float32 [n] in [0, 1).

    Computed on the CPU, where each number has the same bits whatever is computed beside it; Beta(1, 1) is uniform
    and needs no such trip.
    """
    # The middle of each of the 2**24 steps that uniform numbers come in: 0 would be the far end of a long tail.
    u = uniform.to(torch.float64) + 2.0**-25
    if alpha == 1:
        return u.to(torch.float32)
    from scipy.special import betaincinv  # type: ignore[import-untyped]  # slow to import

    return torch.from_numpy(betaincinv(alpha, alpha, u.cpu().numpy())).to(uniform.device, torch.float32)
