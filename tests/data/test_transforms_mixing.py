"""MixUp and CutMix against torchvision, with another ratio for each sample."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from support.small_images import images
from torch import Tensor
from torchvision.transforms import v2

from cifar_dist.data.operations.mixing import mix_labels, mixup
from cifar_dist.data.transforms import Samples
from cifar_dist.data.transforms.cutmix import CutMix
from cifar_dist.data.transforms.mixup import MixUp

CLASSES = 10
LABELS = torch.arange(30) % CLASSES


def by_torchvision(transform: v2.Transform, pair: Tensor, labels: Tensor, **params: object) -> tuple[Tensor, Tensor]:
    """Return torchvision's second image of a pair and its label; it mixes each image with the one before it."""
    params |= {"labels": labels, "batch_size": 2}
    return transform.transform(pair, params)[1], transform.transform(labels, params)[1]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_is_torchvisions(alpha: float) -> None:
    batch, ids = images(30).to(torch.float32), torch.arange(30)
    partner = ids.roll(1)
    mixed, ratio = MixUp(alpha=alpha)(batch, batch[partner], Samples(3, 1, ids))
    labels = mix_labels(LABELS, LABELS[partner], ratio, CLASSES)
    for row in range(30):
        which = torch.stack([partner[row], ids[row]])
        expected, label = by_torchvision(
            v2.MixUp(num_classes=CLASSES), batch[which], LABELS[which], lam=float(ratio[row])
        )
        assert torch.equal(mixed[row], expected)
        torch.testing.assert_close(labels[row], label, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutmix_is_torchvisions(dtype: torch.dtype) -> None:
    batch, ids = images(30).to(dtype), torch.arange(30)
    partner, transform = ids.roll(1), CutMix()
    mixed, ratio = transform(batch, batch[partner], Samples(3, 1, ids))
    labels = mix_labels(LABELS, LABELS[partner], ratio, CLASSES)
    boxes = transform.boxes(Samples(3, 1, ids), 14, 11).tolist()
    for row, (top, left, height, width) in enumerate(boxes):
        which = torch.stack([partner[row], ids[row]])
        lam = 1.0 - height * width / (14 * 11)
        expected, label = by_torchvision(
            v2.CutMix(num_classes=CLASSES),
            batch[which],
            LABELS[which],
            box=(left, top, left + width, top + height),
            lam_adjusted=lam,
        )
        assert torch.equal(mixed[row], expected)
        torch.testing.assert_close(labels[row], label, rtol=0, atol=1e-6)


def test_mixup_of_pixels_is_float() -> None:
    batch = images(2)
    assert torch.equal(mixup(batch, batch.flip(0), torch.tensor([1.0, 0.0])), batch[[0, 0]].to(torch.float32))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 3.0])
def test_ratios_are_beta_distributed(alpha: float) -> None:
    ratio = MixUp(alpha=alpha).ratio(Samples(0, 0, torch.arange(5000)))
    assert ratio.dtype == torch.float32
    assert 0 <= ratio.min() <= ratio.max() <= 1
    for level in (1e-3, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 0.999):
        expected = stats.beta(alpha, alpha).cdf(level)
        below = float((ratio <= level).double().mean())
        assert abs(below - expected) < 6 * math.sqrt(expected * (1 - expected) / 5000)


def test_boxes_of_cutmix_follow_torchvisions_law() -> None:
    """Mean and spread of position and size agree within six standard errors."""
    ours = CutMix().boxes(Samples(0, 0, torch.arange(10_000)), 32, 24).to(torch.float64)
    assert (ours[:, 0] + ours[:, 2]).max() <= 32
    assert (ours[:, 1] + ours[:, 3]).max() <= 24
    transform, image = v2.CutMix(num_classes=CLASSES), torch.zeros(2, 3, 32, 24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [transform.make_params([image])["box"] for _ in range(2500)]
    theirs = torch.tensor([[y1, x1, y2 - y1, x2 - x1] for x1, y1, x2, y2 in drawn], dtype=torch.float64)
    for one, other in ((ours, theirs), (ours**2, theirs**2)):
        error = torch.sqrt(one.var(0) / len(one) + other.var(0) / len(other))
        assert ((one.mean(0) - other.mean(0)).abs() < 6 * error).all()


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("transform", [MixUp, CutMix])
def test_invalid_alphas_are_refused(transform: type, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"^alpha"):
        transform(alpha=alpha)
    with pytest.raises(ValueError, match=r"^p -1 is a probability"):
        transform(p=-1)
