"""ResNets under 5 million parameters for small images: one family in which every dimension is an option.

Basic blocks as in He et al.: *Deep Residual Learning for Image Recognition*, arXiv:1512.03385, section 4.2, in
pytorch-cifar's arrangement: a stem without max-pool, the first stage at stride 1, the others at stride 2.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from cifar_dist.config.section import require
from cifar_dist.models.options import Kernel, Probability, Size, SizeOrZero
from cifar_dist.models.pooling import GridAvgPool

_IMAGE_SIDE = 32  # the image size that ``pool`` refers to


def small_resnet(
    classes: int,
    channels: int,
    *,
    widths: tuple[Size, ...] = (64, 128, 256),
    blocks: tuple[Size, ...] = (2, 2, 2),
    kernels: tuple[Kernel, ...] = (3, 3),
    expansion: Size = 1,
    stem: Size = 64,
    stem_kernel: Kernel = 3,
    pool: SizeOrZero = 0,
    extra_conv: SizeOrZero = 0,
    head: tuple[Size, ...] = (),
    dropout: tuple[Probability, ...] = (),
) -> nn.Module:
    """Build any member of the family; the options are the arguments of :class:`SmallResNet`."""
    return SmallResNet(
        classes,
        channels,
        widths=widths,
        blocks=blocks,
        kernels=kernels,
        expansion=expansion,
        stem=stem,
        stem_kernel=stem_kernel,
        pool=pool,
        extra_conv=extra_conv,
        head=head,
        dropout=dropout,
    )


def tiny_resnet(classes: int, channels: int, *, widths: tuple[Size, ...] = (16, 32, 64)) -> nn.Module:
    """Build a demonstration network for the CPU: one block per stage, a stem of stride 2, 78 thousand parameters."""
    return SmallResNet(
        classes, channels, widths=widths, blocks=(1,) * len(widths), stem=widths[0] if widths else 1, stem_stride=2
    )


class SmallResNet(nn.Module):
    """Maps images, float [N, C, H, W] of any size, to logits, float [N, classes].

    Args:
        widths: channels of each stage.
        blocks: number of residual blocks in each stage.
        kernels: kernel of each convolution of a block: (3, 3) is the basic block, (1, 3, 1) the bottleneck.
        expansion: a block's last convolution is this many times as wide (4 in the usual bottleneck).
        stem: channels of the first convolution.
        stem_kernel, stem_stride: kernel and stride of the first convolution.
        pool: kernel of the average pool before the linear layers, at 32x32 images; 0 pools the entire map. A kernel
            smaller than the map leaves several features per channel. Other image sizes give as many features.
        extra_conv: channels of a 3x3 convolution with BatchNorm after the last stage; 0 for none.
        head: widths of hidden linear layers.
        dropout: probability before each linear layer (one more entry than ``head``); empty for none.
        squeeze: reduction of a squeeze-and-excitation at the end of each block (Hu et al., arXiv:1709.01507);
            0 for none.
        stochastic_depth: probability that training skips the last block for a sample; the probability grows linearly
            with the depth of the block (Huang et al., arXiv:1603.09382).

    Raises:
        ValueError: the lengths disagree, or ``pool`` does not divide the map.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        *,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        kernels: tuple[int, ...] = (3, 3),
        expansion: int = 1,
        stem: int = 64,
        stem_kernel: int = 3,
        stem_stride: int = 1,
        pool: int = 0,
        extra_conv: int = 0,
        head: tuple[int, ...] = (),
        dropout: tuple[float, ...] = (),
        squeeze: int = 0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        require(len(widths) == len(blocks) > 0, "widths and blocks must have the same length, one entry per stage")
        require(len(kernels) > 0, "kernels must have at least one entry")
        entries = f"{len(head) + 1} {'entries' if head else 'entry'}"
        require(len(dropout) in (0, len(head) + 1), f"dropout must be empty or have {entries}")

        self.stem = nn.Sequential(*_conv(channels, stem, stem_kernel, stem_stride), nn.ReLU())
        width = stem
        stages = nn.Sequential()
        for stage, (channels_out, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                drop_probability = stochastic_depth * (len(stages) + 1) / sum(blocks)
                stages.append(_Block(width, channels_out, stride, kernels, expansion, squeeze, drop_probability))
                width = channels_out * expansion
        if extra_conv:
            stages.append(nn.Sequential(*_conv(width, extra_conv, 3, 1), nn.ReLU()))
            width = extra_conv
        self.stages = stages

        grid = _pooled_side(_IMAGE_SIDE // (stem_stride * 2 ** (len(widths) - 1)), pool)
        self.pool = GridAvgPool(grid)
        self.head = _head((width * grid**2, *head, classes), dropout)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.stages(self.stem(images))).flatten(1))
        return logits


class _Block(nn.Module):
    """Convolutions with BatchNorm, added to the input or, where the shape changes, to its 1x1 projection."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        kernels: tuple[int, ...],
        expansion: int,
        squeeze: int,
        drop_probability: float,
    ) -> None:
        super().__init__()
        # A strided 1x1 convolution would ignore three pixels in four, so the first larger kernel has the stride.
        strided = next((index for index, kernel in enumerate(kernels) if kernel > 1), 0)
        outputs = width * expansion
        chain = (inputs, *[width] * (len(kernels) - 1), outputs)
        layers: list[nn.Module] = []
        for index, (kernel, (a, b)) in enumerate(zip(kernels, pairwise(chain), strict=True)):
            layers += [*_conv(a, b, kernel, stride if index == strided else 1), nn.ReLU()]
        del layers[-1]  # the last activation comes after the sum
        if squeeze:
            from torchvision.ops import SqueezeExcitation

            excitation = SqueezeExcitation(outputs, max(outputs // squeeze, 1))
            excitation.avgpool = GridAvgPool(1)
            layers.append(excitation)
        if drop_probability:
            from torchvision.ops import StochasticDepth

            layers.append(StochasticDepth(drop_probability, mode="row"))
        self.body = nn.Sequential(*layers)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(inputs, outputs, 1, stride))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return out


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs)


def _pooled_side(side: int, pool: int) -> int:
    """Return the side of the map after the pool."""
    require(
        pool == 0 or (pool <= side and side % pool == 0),
        f"pool {pool} does not divide the last map, which is {side}x{side} for 32x32 images; use 0 to pool all of it",
    )
    return side // pool if pool else 1


def _head(widths: tuple[int, ...], dropout: tuple[float, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (a, b) in enumerate(pairwise(widths)):
        if dropout:
            layers.append(nn.Dropout(dropout[index]))
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
