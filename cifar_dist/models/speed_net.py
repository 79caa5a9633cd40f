"""The airbench networks (Keller Jordan: *94% on CIFAR-10 in 3.29 seconds on a single GPU*, arXiv:2404.00498).

::

    whiten 2x2 -> GELU -> 3 groups -> max-pool -> linear * 1/9

    group of airbench94:  conv 3x3 -> max-pool 2 -> BN -> GELU -> conv 3x3 -> BN -> GELU
    group of airbench96:  conv 3x3 -> max-pool 2 -> BN -> GELU -> conv 3x3 -> BN -> GELU -> conv 3x3 -> BN -> + -> GELU
                                                           `-----------------------------------------------'
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.cpu.conv2d import conv2d
from cifar_dist.models.options import Factor, Share, Size, SizeOrZero
from cifar_dist.models.pooling import GlobalMaxPool

_WHITEN_KERNEL = 2
_WHITEN_EPS = 5e-4
_MIN_VARIANCE_RATIO = 1e-9  # to the largest eigenvalue; CIFAR-10's smallest is at 1e-5
_IMAGES_PER_CHUNK, _PIXELS_PER_CHUNK = 256, 256 * 32**2  # bound the memory for patches: 25 MB
_LARGE_SIDE = 16  # of features whose last row and column cost less than their removal


def _builder(sides: tuple[int, int, int], *, residual: bool, norm_momentum: float) -> Callable[..., nn.Module]:
    """Return the builder of a network whose ``widths`` are by default ``sides``."""

    def build(
        classes: int,
        channels: int,
        *,
        widths: tuple[Size, Size, Size] = sides,
        whiten: bool = True,
        scale: Factor = 1 / 9,
        bias_gain: Factor = 8.0,
        whiten_gain: Factor = 1.0,
        whiten_bias: bool = True,
        whiten_bias_share: Share = 1.0,
        whiten_directions: SizeOrZero = 0,
    ) -> nn.Module:
        return SpeedNet(
            classes,
            channels,
            widths=widths,
            residual=residual,
            norm_momentum=norm_momentum,
            whiten=whiten,
            scale=scale,
            bias_gain=bias_gain,
            whiten_gain=whiten_gain,
            whiten_bias=whiten_bias,
            whiten_bias_share=whiten_bias_share,
            whiten_directions=whiten_directions,
        )

    return build


speed_net = _builder((64, 256, 256), residual=False, norm_momentum=0.4)  # airbench94's
speed_net_96 = _builder((128, 384, 512), residual=True, norm_momentum=0.1)  # airbench96's


class SpeedNet(nn.Module):
    """Maps images, float [N, C, H, W] with H and W at least 9, to logits, float [N, classes].

    Args:
        widths: channels of the three groups.
        residual: use airbench96's groups instead of airbench94's.
        norm_momentum: weight of the current batch in BatchNorm's running statistics.
        whiten: compute the first layer's weights in :meth:`initialize` and freeze them (its bias still trains);
            otherwise that layer is an ordinary convolution.
        scale: factor applied to the logits.
        bias_gain: BatchNorm's biases are stored divided by this, so SGD moves them its square times faster: the
            paper's "bias scaler" of 64 without a separate parameter group. The function computed is the same.
        whiten_gain: the same for the bias of the whitening layer: 8 in airbench94 with Muon, 1 in the others.
        whiten_bias: train that bias. Otherwise nothing before the first group learns, so a step computes no gradient
            there, and takes 8 % less time.
        whiten_bias_share: share of each batch's images from which that bias learns, with its gradient scaled to the
            batch. The gradient of the others' activations is not computed: with 1/8, a step takes 5 % less time.
        whiten_directions: number of eigenvectors to use, those in which the images vary most; 0: all.

    Raises:
        ValueError: an option has no effect beside the others, or the patches have fewer directions.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        *,
        widths: tuple[int, int, int],
        residual: bool,
        norm_momentum: float,
        whiten: bool,
        scale: float,
        bias_gain: float,
        whiten_gain: float,
        whiten_bias: bool,
        whiten_bias_share: float,
        whiten_directions: int,
    ) -> None:
        super().__init__()
        if whiten_gain != 1 and not whiten_bias:
            raise ValueError("whiten_gain has no effect without whiten_bias; use --model.options.whiten_gain 1")
        if whiten_bias_share != 1 and not (whiten and whiten_bias):
            raise ValueError(
                "whiten_bias_share has no effect unless whiten and whiten_bias are true; "
                "use --model.options.whiten_bias_share 1"
            )
        directions = channels * _WHITEN_KERNEL**2
        if whiten_directions > directions:
            raise ValueError(f"whiten_directions is {whiten_directions}, but images have {directions}; 0 uses all")
        self.whitened = whiten
        self.scale = scale
        self.bias_share = whiten_bias_share
        filters = 2 * (whiten_directions or directions)  # each eigenvector with both signs, as GELU suppresses one
        self.whiten = _Whiten(channels, filters, whiten_gain)
        self.whiten.weight.requires_grad = not whiten
        self.whiten.bias.requires_grad = whiten_bias
        widths_in = (filters, *widths[:-1])
        group = _ResidualGroup if residual else _Group
        groups = (group(a, b, bias_gain, norm_momentum) for a, b in zip(widths_in, widths, strict=True))
        self.groups = nn.Sequential(*groups)
        self.pool = GlobalMaxPool()  # the paper's 3x3 max-pool at 32x32 images, and works for any size
        self.head = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.groups(self._whitened(images))
        x = self.pool(x).flatten(1)
        logits: Tensor = self.head(x) * self.scale
        return logits

    def _whitened(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the activations; if the bias learns from a share of the images, those of that and of the others."""
        if not self.training or (count := math.ceil(self.bias_share * len(images))) == len(images):
            return F.gelu(self.whiten(images))
        learnt = F.gelu(self.whiten(images[:count], len(images) / count))
        with torch.no_grad():
            return learnt, F.gelu(self.whiten(images[count:]))

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Set the whitening filters to the eigenvectors of the patch covariance, scaled to unit variance.

        Directions in which the images do not vary (grayscale images have many) keep their random filter: the response
        of an eigenvector would be rounding noise, which the first batch norm would amplify. Deterministic, and does
        nothing if ``whiten`` is false. Call it before the network is wrapped or sharded.

        Args:
            images: float [N, C, H, W], normalised training images on any device; the paper uses 5000.
        """
        if not self.whitened:
            return
        eigenvalues, eigenvectors = torch.linalg.eigh(_patch_covariance(images).cpu())
        # The sign of an eigenvector is arbitrary and differs between libraries, so make its largest entry positive.
        largest = eigenvectors.gather(0, eigenvectors.abs().argmax(dim=0, keepdim=True))
        filters = (eigenvectors * largest.sign() / torch.sqrt(eigenvalues.clamp(min=0) + _WHITEN_EPS)).T.flip(0)
        weight = self.whiten.weight
        varies = (eigenvalues > _MIN_VARIANCE_RATIO * eigenvalues.max()).flip(0)[:, None]
        used = len(weight) // 2
        filters = torch.where(varies[:used], filters[:used], weight[:used].flatten(1).to(filters))
        weight.copy_(torch.cat((filters, -filters)).view(weight.shape))


def _patch_covariance(images: Tensor) -> Tensor:
    """Compute the second moments of all 2x2 patches, float64 [C * 4, C * 4], flattened like a convolution's weight."""
    size = images.shape[1] * _WHITEN_KERNEL**2
    total = torch.zeros(size, size, dtype=torch.float64, device=images.device)
    count = 0
    at_once = max(1, min(_IMAGES_PER_CHUNK, _PIXELS_PER_CHUNK // (images.shape[2] * images.shape[3])))
    for chunk in torch.split(images, at_once):
        patches = F.unfold(chunk.double(), _WHITEN_KERNEL).transpose(0, 1).flatten(1)
        total += patches @ patches.T
        count += patches.shape[1]
    return total / count


class _Whiten(nn.Conv2d):
    """A 2x2 convolution whose effective bias is ``bias * gain``."""

    bias: nn.Parameter  # nn.Conv2d's may be None

    def __init__(self, channels: int, filters: int, gain: float) -> None:
        super().__init__(channels, filters, _WHITEN_KERNEL)
        nn.init.zeros_(self.bias)
        self.gain = gain

    def forward(self, images: Tensor, scale: float = 1.0) -> Tensor:
        """Map float [n, channels, h, w] to [n, filters, h - 1, w - 1]; ``scale`` multiplies the bias's gradient."""
        bias = self.bias * self.gain
        if scale != 1:
            bias = bias.detach() + scale * (bias - bias.detach())
        return F.conv2d(images, self.weight, bias)


class _Group(nn.Module):
    def __init__(self, inputs: int, width: int, bias_gain: float, norm_momentum: float) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, _ConvBeforePool)
        self.norm1 = _BatchNorm(width, bias_gain, norm_momentum)
        self.conv2 = _conv(width, width)
        self.norm2 = _BatchNorm(width, bias_gain, norm_momentum)

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Map a batch, float [n, inputs, h, w], or parts of one, to [n, width, h // 2, w // 2]."""
        return F.gelu(self.norm2(self.conv2(self._pooled(x))))

    def _pooled(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        parts = (x,) if isinstance(x, Tensor) else x
        pooled = [F.max_pool2d(self.conv1(part), 2) for part in parts]
        return F.gelu(self.norm1(torch.cat(pooled) if len(pooled) > 1 else pooled[0]))


class _ResidualGroup(_Group):
    def __init__(self, inputs: int, width: int, bias_gain: float, norm_momentum: float) -> None:
        super().__init__(inputs, width, bias_gain, norm_momentum)
        self.conv3 = _conv(width, width)
        self.norm3 = _BatchNorm(width, bias_gain, norm_momentum)

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        first = self._pooled(x)
        x = F.gelu(self.norm2(self.conv2(first)))
        return F.gelu(self.norm3(self.conv3(x)) + first)


class _ConvBeforePool(nn.Conv2d):
    """A 3x3 convolution of padding 1 before a 2x2 pool, which ignores the last row and column of an odd side.

    They are 13 of 7x7 values, and are not computed on a CPU, where arithmetic takes the time. On a GPU launches do.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map float [n, inputs, h, w] to [n, outputs, h, w], or to h - 1 and w - 1 where these are not computed."""
        height, width = x.shape[2:]
        if x.device.type != "cpu":
            return F.conv2d(x, self.weight, padding=1)
        if height % 2 and width % 2 and height < _LARGE_SIDE:
            return conv2d(F.pad(x, (1, 0, 1, 0)), self.weight)
        return conv2d(x, self.weight, padding=(1, 1))


def _conv(inputs: int, width: int, kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
    """Build a 3x3 convolution whose first filters are the identity (dirac), a residual connection at initialisation."""
    conv = kind(inputs, width, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:inputs])
    return conv


class _BatchNorm(nn.BatchNorm2d):
    """BatchNorm without a learnable scale: its weight stays 1 and its effective bias is ``bias * gain``."""

    def __init__(self, width: int, gain: float, momentum: float) -> None:
        super().__init__(width, eps=1e-12)
        self.momentum: float = momentum
        self.weight.requires_grad = False
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        # Skips the batch counter of nn.BatchNorm2d, which only a cumulative average needs.
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias * self.gain,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )
