"""What ``model.conv = "handmade"`` costs: a training step of the custom ResNet against torch's convolutions.

    python benchmarks/convolution.py

Forward and backward of 64 random 32x32 images in float32, on the GPU where there is one. The two take turns, one step
each. Before that their gradients are compared in float64, in which they agree to 1e-14. In float32 they differ by up to
1e-2: the sums of the forward pass round differently by 1e-6, which is enough for some units to be on the other side of
a ReLU, or to win in another max-pool.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from comparison import record, take_turns
from torch import Tensor, nn

from cifar_dist.config import ModelConfig
from cifar_dist.distributed.device_time import time_on
from cifar_dist.models import build_for

BATCH = 64
STEPS = 5
SHAPE = (32, 32, 3)
LARGEST_ERROR = 1e-10  # of a gradient, relative to it


def network(conv: Literal["torch", "handmade"], device: torch.device) -> nn.Module:
    """Build the custom ResNet with one of the two kinds of convolutions, always with the same weights."""
    torch.manual_seed(0)
    return build_for(ModelConfig(name="custom-resnet", conv=conv), shape=SHAPE, classes=10).to(device)


def compute_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Do one forward and one backward pass."""
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()


def require_equal_gradients(images: Tensor, labels: Tensor) -> None:
    """Compare the gradients of both.

    Args:
        images: float64 [n, 3, 32, 32].
        labels: int64 [n].

    Raises:
        SystemExit: they are not the same computation.
    """
    both = [network(conv, images.device).double() for conv in ("handmade", "torch")]
    for model in both:
        compute_gradients(model, images, labels)
    for (name, ours), theirs in zip(both[0].named_parameters(), both[1].parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        error = ((ours.grad - theirs.grad).norm() / theirs.grad.norm()).item()
        if not error < LARGEST_ERROR:
            sys.exit(f"convolution: the gradients of {name} differ by {error:.1e} in float64")


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # nor does the matrix product take it unasked
    images, labels = torch.randn(BATCH, 3, 32, 32, device=device), torch.arange(BATCH, device=device) % 10
    require_equal_gradients(images.double(), labels)
    ours, theirs = network("handmade", device), network("torch", device)
    comparison = take_turns(
        f"a step of custom-resnet with handmade convolutions, {BATCH} images",
        "torch's convolutions",
        "s",
        lambda: time_on(device, partial(compute_gradients, ours, images, labels)),
        lambda: time_on(device, partial(compute_gradients, theirs, images, labels)),
        STEPS,
    )
    record(__file__, [comparison])


if __name__ == "__main__":
    main()
