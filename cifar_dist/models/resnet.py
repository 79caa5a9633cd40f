"""ResNet-18, -34 and -50, layer for layer and key for key torchvision's, so that its pretrained weights load.

He et al.: *Deep Residual Learning for Image Recognition*, arXiv:1512.03385. The stride of a bottleneck is in its
3x3 convolution ("v1.5"), as in torchvision.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from cifar_dist.models.convolution import UnfoldConv2d
from cifar_dist.models.registry import register

Stem = Literal["imagenet", "cifar"]
Convolution = Literal["torch", "unfold"]


@register("resnet18")
def resnet18(
    classes: int, channels: int, *, stem: Stem = "imagenet", freeze: bool = False, convolution: Convolution = "torch"
) -> nn.Module:
    """Basic blocks, two a stage."""
    return ResNet(classes, channels, _BasicBlock, (2, 2, 2, 2), stem=stem, freeze=freeze, convolution=convolution)


@register("resnet34")
def resnet34(
    classes: int, channels: int, *, stem: Stem = "imagenet", freeze: bool = False, convolution: Convolution = "torch"
) -> nn.Module:
    """Basic blocks: 21,797,672 parameters with 1000 classes."""
    return ResNet(classes, channels, _BasicBlock, (3, 4, 6, 3), stem=stem, freeze=freeze, convolution=convolution)


@register("resnet50")
def resnet50(
    classes: int, channels: int, *, stem: Stem = "imagenet", freeze: bool = False, convolution: Convolution = "torch"
) -> nn.Module:
    """Bottleneck blocks."""
    return ResNet(classes, channels, _Bottleneck, (3, 4, 6, 3), stem=stem, freeze=freeze, convolution=convolution)


class _BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, conv: type[nn.Conv2d], downsample: nn.Module | None):
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = conv(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(x)) + identity)
        return out


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, conv: type[nn.Conv2d], downsample: nn.Module | None):
        super().__init__()
        self.conv1 = conv(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.relu(self.bn3(self.conv3(x)) + identity)
        return out


class ResNet(nn.Module):
    """Takes float [N, C, H, W] of any size, gives logits, float [N, classes].

    Args:
        blocks: blocks of each of the four stages, 64 to 512 wide.
        stem: ``imagenet`` is a 7x7 convolution at stride 2 and a max-pool; ``cifar`` a 3x3 convolution at stride 1,
            for images too small to lose three quarters of their side at the door.
        freeze: feature extraction: only the last layer learns, and the rest stays in evaluation mode, so that the
            batch statistics of pretrained weights are kept too.
        convolution: ``torch``, or ``unfold`` for the hand-made one (slow, the same numbers).
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        block: type[_BasicBlock] | type[_Bottleneck],
        blocks: tuple[int, int, int, int],
        *,
        stem: Stem,
        freeze: bool,
        convolution: Convolution,
    ) -> None:
        super().__init__()
        conv = UnfoldConv2d if convolution == "unfold" else nn.Conv2d
        if stem == "imagenet":
            self.conv1 = conv(channels, 64, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = conv(channels, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        out = block.expansion
        self.layer1 = _stage(block, conv, 64, 64, blocks[0], stride=1)
        self.layer2 = _stage(block, conv, 64 * out, 128, blocks[1], stride=2)
        self.layer3 = _stage(block, conv, 128 * out, 256, blocks[2], stride=2)
        self.layer4 = _stage(block, conv, 256 * out, 512, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * out, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.frozen = freeze
        if freeze:
            self.requires_grad_(False)
            self.fc.requires_grad_(True)

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode and not self.frozen)
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(
    block: type[_BasicBlock] | type[_Bottleneck],
    conv: type[nn.Conv2d],
    inputs: int,
    width: int,
    count: int,
    *,
    stride: int,
) -> nn.Sequential:
    outputs = width * block.expansion
    downsample = None
    if stride > 1 or inputs != outputs:
        downsample = nn.Sequential(conv(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    first = block(inputs, width, stride, conv, downsample)
    return nn.Sequential(first, *(block(outputs, width, 1, conv, None) for _ in range(count - 1)))
