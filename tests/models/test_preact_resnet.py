"""The pre-activation ResNet against a transcription of its definition."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.models import build
from cifar_dist.models.preact_resnet import PreActResNet


def conv(inputs: int, outputs: int, side: int) -> int:
    return inputs * outputs * side**2


def norm(width: int) -> int:
    return 2 * width


def test_the_default_has_the_size_that_its_layers_add_up_to() -> None:
    count = conv(3, 64, 3)
    width = 64
    for outputs in (64, 128, 256, 512):
        count += norm(width) + conv(width, outputs, 3) + norm(outputs) + conv(outputs, outputs, 3)
        count += conv(width, outputs, 1) if width != outputs else 0  # the projection, which has no norm
        count += 2 * (norm(outputs) + conv(outputs, outputs, 3))
        width = outputs
    count += 512 * 10 + 10
    model = build("preact-resnet18", classes=10, options={})
    assert sum(p.numel() for p in model.parameters()) == count == 11_171_146


def transcription(weights: Mapping[str, Tensor], images: Tensor, strides: list[int], blocks: int) -> Tensor:
    """Compute the logits in evaluation mode with functions of tensors: x + W2 relu(BN(W1 relu(BN(x))))."""

    def relu_norm(x: Tensor, name: str) -> Tensor:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.relu(F.batch_norm(x, mean, var, weights[f"{name}.weight"], weights[f"{name}.bias"]))

    x = F.conv2d(images, weights["stem.weight"], padding=1)
    for stage, stage_stride in enumerate(strides):
        for block in range(blocks):
            name, stride = f"stages.{stage}.{block}", stage_stride if block == 0 else 1
            active = relu_norm(x, f"{name}.norm1")
            projection = weights.get(f"{name}.projection.weight")
            identity = x if projection is None else F.conv2d(active, projection, stride=stride)
            x = F.conv2d(active, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            x = F.conv2d(relu_norm(x, f"{name}.norm2"), weights[f"{name}.conv2.weight"], padding=1) + identity
    if "norm.0.weight" in weights:
        x = relu_norm(x, "norm.0")
    return F.linear(x.mean((2, 3)), weights["head.weight"], weights["head.bias"])


@pytest.mark.parametrize("final_norm", [True, False])
def test_it_computes_what_the_paper_defines(final_norm: bool) -> None:
    torch.manual_seed(0)
    model = PreActResNet(10, 3, stem=4, widths=(4, 8, 12), blocks=2, final_norm=final_norm).double()
    images = torch.randn(3, 3, 20, 20, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
            nn.init.normal_(module.bias)
    model(images)  # running statistics that are not those of a new network
    logits = model.eval()(images)
    torch.testing.assert_close(logits, transcription(model.state_dict(), images, [1, 2, 2], 2))
    assert ("norm.0.weight" in model.state_dict()) == final_norm


def test_weights_start_as_he_et_als_normal() -> None:
    torch.manual_seed(0)
    model = build("preact-resnet18", classes=10, options={})
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4 and parameter.numel() > 10_000:
            assert parameter.std().item() == pytest.approx((2 / parameter[0].numel()) ** 0.5, rel=0.03), name
