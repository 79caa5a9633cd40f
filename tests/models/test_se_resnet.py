"""Squeeze-and-excitation and stochastic depth on the small ResNet."""

from __future__ import annotations

import pytest
import torch
from support.layers import layer_at
from torch import nn
from torchvision.ops import StochasticDepth

from cifar_dist.models import build


def parameters(reduction: int) -> int:
    model = build("se-resnet", classes=10, options={"reduction": reduction})
    return sum(p.numel() for p in model.parameters())


def test_the_reduction_changes_the_number_of_parameters_little() -> None:
    assert round(parameters(16) / 1e6, 1) == 2.8
    assert round(parameters(4) / 1e6, 1) == 2.9


def test_channels_are_scaled_per_image() -> None:
    """Silencing the excitation's last layer with a bias of 0 halves the body: sigmoid(0)."""
    model = build("se-resnet", classes=10, options={"widths": [8], "blocks": [1]}).eval()
    block = model.get_submodule("stages.0")
    body = layer_at(block, "body", nn.Sequential)
    convolutions, excitation = body[:-1], body[-1]
    for parameter in excitation.get_submodule("fc2").parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block(x), (convolutions(x) / 2 + x).relu())


def test_stochastic_depth_grows_with_depth_and_is_off_in_evaluation() -> None:
    model = build("se-resnet", classes=10, options={"widths": [4, 8], "blocks": [2, 2], "stochastic_depth": 0.4})
    assert [m.p for m in model.modules() if isinstance(m, StochasticDepth)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    images = torch.randn(8, 3, 32, 32)
    torch.manual_seed(0)
    first = model.train()(images)
    assert not torch.equal(model(images), first)
    model.eval()
    assert torch.equal(model(images), model(images))
