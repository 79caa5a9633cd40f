"""The work-around for the gradient in which oneDNN writes past its workspace: the same numbers, and no crash."""

from __future__ import annotations

import copy

import pytest
import torch
from support.running import spawn
from torch import nn

from cifar_dist.cpu.onednn import avoid_strided_1x1

# Without the way around it this dies of a signal with oneDNN's AVX-512 convolutions; on one thread it does not.
STEPS = """
import torch
from torch import nn
from cifar_dist.cpu.malloc import keep_freed_memory
from cifar_dist.cpu.onednn import avoid_strided_1x1

keep_freed_memory()
torch.set_num_threads(2)
torch.manual_seed(0)
kept = []
for step in range(200):
    conv = nn.Conv2d({channels}, 16, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
    avoid_strided_1x1(conv)
    images = torch.randn(43, {channels}, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", enabled={autocast}):
        answers = conv(images)
    answers.backward(torch.ones_like(answers))
    kept = [*kept[-6:], conv.weight.grad]
"""


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("channels", [4, 12])
def test_a_narrow_strided_convolution_learns(channels: int, autocast: bool) -> None:
    (done,) = spawn(["-c", STEPS.format(channels=channels, autocast=autocast)])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stride", [2, (1, 3), (2, 1)])
def test_it_is_the_same_sum(stride: int | tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, 1, stride=stride).double()
    spared = copy.deepcopy(plain)
    avoid_strided_1x1(spared)
    avoid_strided_1x1(spared)  # again changes nothing
    assert spared.stride == (1, 1)
    assert plain.state_dict().keys() == spared.state_dict().keys()
    images = torch.randn(3, 5, 9, 8, dtype=torch.float64)
    gradients = []
    for conv in (plain, copy.deepcopy(spared)):
        seen = images.clone().requires_grad_()
        out = conv(seen)
        out.square().sum().backward()
        assert conv.bias is not None
        gradients.append((out.detach(), seen.grad, conv.weight.grad, conv.bias.grad))
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 8, 1, stride=2),  # a whole block
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 1, stride=2, padding=1),
        nn.Conv2d(8, 8, 1, stride=2, groups=8),
    ],
)
def test_others_are_left_alone(conv: nn.Conv2d) -> None:
    stride = conv.stride
    avoid_strided_1x1(conv)
    assert conv.stride == stride
    assert not conv._forward_pre_hooks
