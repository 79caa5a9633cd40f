"""What ``model.conv = "handmade"`` costs: a training step of the custom ResNet against torch's convolutions.

    python benchmarks/convolution.py

Forward and backward of 64 random 32x32 images in float32, on the GPU where there is one. The two take turns, one step
each. Before that their losses and gradients are compared: they are the same computation.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from comparison import record, take_turns
from torch import Tensor, nn

from cifar_dist.config import ModelConfig
from cifar_dist.models import build_for

BATCH = 64
STEPS = 5
SHAPE = (32, 32, 3)


def network(config: ModelConfig, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return build_for(config, shape=SHAPE, classes=10).to(device)


def step(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Seconds of one forward and one backward pass; the gradients stay, for who wants to look."""
    model.zero_grad()
    if images.is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    F.cross_entropy(model(images), labels).backward()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # nor does the matrix product take it unasked
    images, labels = torch.randn(BATCH, 3, 32, 32, device=device), torch.arange(BATCH, device=device) % 10
    models = {
        "torch": network(ModelConfig(name="custom-resnet"), device),
        "handmade": network(ModelConfig(name="custom-resnet", conv="handmade"), device),
    }
    for model in models.values():
        step(model, images, labels)  # warms up too
    for one, other in zip(*(model.parameters() for model in models.values()), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        error = (one.grad - other.grad).norm() / one.grad.norm()
        assert error < 1e-2, f"the two differ by {error:.1e}"
    comparison = take_turns(
        f"a step of custom-resnet with handmade convolutions, {BATCH} images",
        "torch's convolutions",
        "s",
        lambda: step(models["handmade"], images, labels),
        lambda: step(models["torch"], images, labels),
        STEPS,
    )
    record(__file__, [comparison])


if __name__ == "__main__":
    main()
