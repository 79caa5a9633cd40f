"""Pre-activation ResNets for small images: normalisation and ReLU before each convolution, nothing after the sum.

He et al.: *Identity Mappings in Deep Residual Networks*, arXiv:1603.05027, in pytorch-cifar's form::

    conv 3x3 -> stages of blocks, all but the first at stride 2 -> (BN, ReLU) -> average pool -> linear

    block: x -> BN -> ReLU -> conv 3x3 -> BN -> ReLU -> dropout -> conv 3x3 -> + x
"""

from __future__ import annotations

from torch import Tensor, nn

from cifar_dist.models.pooling import GridAvgPool


def preact_resnet18(classes: int, channels: int) -> nn.Module:
    """Build pytorch-cifar's PreActResNet18: 11,171,146 parameters at 10 classes, and no final BN and ReLU."""
    return PreActResNet(classes, channels, stem=64, widths=(64, 128, 256, 512), blocks=2, final_norm=False)


class PreActResNet(nn.Module):
    """Maps images, float [N, C, H, W] of any size, to logits, float [N, classes].

    Args:
        stem: channels of the first convolution.
        widths: channels of each stage.
        blocks: number of blocks in every stage.
        final_norm: end in BN and ReLU, as the paper does.
        dropout: probability between the two convolutions of a block.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        *,
        stem: int,
        widths: tuple[int, ...],
        blocks: int,
        final_norm: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        width = stem
        for index, outputs in enumerate(widths):
            first = _Block(width, outputs, 2 if index else 1, dropout)
            self.stages.append(nn.Sequential(first, *(_Block(outputs, outputs, 1, dropout) for _ in range(blocks - 1))))
            width = outputs
        self.norm = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU()) if final_norm else nn.Identity()
        self.pool = GridAvgPool(1)
        self.head = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stages(self.stem(images)))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        same = stride == 1 and inputs == width
        self.projection = None if same else nn.Conv2d(inputs, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.norm1(x))
        # A projection takes the activated input, as in the authors' code; the identity path carries the raw input.
        identity = x if self.projection is None else self.projection(activated)
        x = self.conv1(activated)
        x = self.conv2(self.dropout(self.relu(self.norm2(x))))
        out: Tensor = x + identity
        return out
