"""ResNet-18, -34 and -50 with the layers and state-dict keys of torchvision's, so that its pretrained weights load.

He et al.: *Deep Residual Learning for Image Recognition*, arXiv:1512.03385. A bottleneck strides in its 3x3
convolution ("v1.5"), as in torchvision.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from cifar_dist.models.options import Size
from cifar_dist.models.pooling import GridAvgPool

Stem = Literal["imagenet", "cifar"]
Blocks = tuple[Size, Size, Size, Size]
"""Number of blocks in each stage; fewer than the default for ablations."""


def resnet18(classes: int, channels: int, *, stem: Stem = "imagenet", blocks: Blocks = (2, 2, 2, 2)) -> nn.Module:
    """Build ResNet-18: two basic blocks per stage."""
    return ResNet(classes, channels, _BasicBlock, blocks, stem=stem)


def resnet34(classes: int, channels: int, *, stem: Stem = "imagenet", blocks: Blocks = (3, 4, 6, 3)) -> nn.Module:
    """Build ResNet-34: basic blocks, 21,797,672 parameters at 1000 classes."""
    return ResNet(classes, channels, _BasicBlock, blocks, stem=stem)


def resnet50(classes: int, channels: int, *, stem: Stem = "imagenet", blocks: Blocks = (3, 4, 6, 3)) -> nn.Module:
    """Build ResNet-50: bottleneck blocks."""
    return ResNet(classes, channels, _Bottleneck, blocks, stem=stem)


class _BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(x)) + identity)
        return out


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
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
    """Maps images, float [N, C, H, W] of any size, to logits, float [N, classes].

    Args:
        blocks: number of blocks in each of the four stages, which are 64 to 512 wide.
        stem: ``imagenet`` is a 7x7 convolution of stride 2 and a max-pool; ``cifar`` is a 3x3 convolution of stride 1,
            for images too small to be downsampled by 4 at once.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        block: type[_BasicBlock] | type[_Bottleneck],
        blocks: tuple[int, int, int, int],
        *,
        stem: Stem,
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        out = block.expansion
        self.layer1 = _stage(block, 64, 64, blocks[0], stride=1)
        self.layer2 = _stage(block, 64 * out, 128, blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * out, 256, blocks[2], stride=2)
        self.layer4 = _stage(block, 256 * out, 512, blocks[3], stride=2)
        self.avgpool = GridAvgPool(1)
        self.fc = nn.Linear(512 * out, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(
    block: type[_BasicBlock] | type[_Bottleneck],
    inputs: int,
    width: int,
    count: int,
    *,
    stride: int,
) -> nn.Sequential:
    outputs = width * block.expansion
    downsample = None
    if stride > 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    first = block(inputs, width, stride, downsample)
    return nn.Sequential(first, *(block(outputs, width, 1, None) for _ in range(count - 1)))
