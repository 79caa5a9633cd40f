"""Mix two samples: their pixels, their labels, and the distribution of the ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_dist.data.operations.boxes import inside_boxes


def mixup(images: Tensor, partner_images: Tensor, ratio: Tensor) -> Tensor:
    """Compute ``ratio * image + (1 - ratio) * partner``; images float32 [n, c, h, w], ratio float32 [n]."""
    ratio = ratio[:, None, None, None]
    return images * ratio + partner_images * (1 - ratio)


def cutmix(images: Tensor, partner_images: Tensor, boxes: Tensor) -> Tensor:
    """Copy the partner's pixels in ``boxes`` (int64 [n, 4]: top, left, height, width); [n, c, h, w] of any dtype."""
    return torch.where(inside_boxes(boxes, *images.shape[2:])[:, None], partner_images, images)


def mix_labels(labels: Tensor, partner_labels: Tensor, ratio: Tensor, classes: int) -> Tensor:
    """Compute targets float32 [n, classes]: ``ratio`` float32 [n] for the label int64 [n], the rest for the other."""
    places = torch.arange(classes, device=labels.device)
    own, others = (which[:, None] == places for which in (labels, partner_labels))
    return own * ratio[:, None] + others * (1 - ratio[:, None])


def beta(uniform: Tensor, alpha: float) -> Tensor:
    """Evaluate the quantile function of Beta(alpha, alpha) at ``uniform``, float32 [n] in [0, 1); returns float32 [n].

    Computed on the CPU, where the bits of a result do not depend on the batch; Beta(1, 1) is uniform and stays on the
    device.
    """
    # Use the middle of each of the 2**24 steps of uniform numbers: 0 would be the far end of a long tail.
    u = uniform.to(torch.float64) + 2.0**-25
    return u.to(torch.float32) if alpha == 1 else _beta_quantile(u, alpha)


@torch.library.custom_op("cifar_dist::beta_quantile", mutates_args=())  # else a trace would keep the numbers it saw
def _beta_quantile(u: Tensor, alpha: float) -> Tensor:
    """Map float64 [n] in (0, 1), on any device, to float32 [n] there."""
    from scipy.special import betaincinv  # slow to import

    return torch.from_numpy(betaincinv(alpha, alpha, u.cpu().numpy())).to(u.device, torch.float32)


@_beta_quantile.register_fake
def _(u: Tensor, alpha: float) -> Tensor:
    return torch.empty_like(u, dtype=torch.float32)
