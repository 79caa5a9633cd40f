"""Batch normalisation over the micro-batches of all processes, as of one process that has them all.

Torch's ``SyncBatchNorm``, which computes on GPUs only, with the same for CPUs.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from cifar_dist.errors import UserError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronise_batch_norms(network: nn.Module, name: str) -> None:
    """Replace the batch norms of ``network``, called ``name``; parameters and buffers stay the same tensors.

    Raises:
        UserError: it has none, or some with a computation of their own.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise UserError(f"train.sync_batchnorm has no effect: {name} has no batch normalisation; remove it")
    for norm in norms:
        if type(norm) not in _PLAIN:
            raise UserError(
                f"train.sync_batchnorm cannot replace the {type(norm).__name__} of {name}, which is not torch's "
                "BatchNorm; remove it"
            )
    for parent in [*network.modules()]:
        for key, child in parent.named_children():
            if isinstance(child, _PLAIN):
                setattr(parent, key, _synchronised(child))


def _synchronised(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> SyncBatchNorm:
    new = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new._parameters, new._buffers, new.training = norm._parameters, norm._buffers, norm.training
    return new


class SyncBatchNorm(nn.SyncBatchNorm):
    """Every process must call it in training with as many micro-batches as the others."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            normalised: Tensor = super().forward(input)
            return normalised
        shape = [1, -1, *[1] * (input.ndim - 2)]
        axes = [axis for axis in range(input.ndim) if axis != 1]
        x = input.float()
        count = torch.full((1,), x.numel() / x.size(1))
        *_, total = sums = _Sum.apply(torch.cat([x.sum(axes), count]))
        mean = sums[:-1] / total
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / total
        self._track(mean.detach(), variance.detach() * total / (total - 1))
        y: Tensor = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics; ``variance`` is unbiased."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)


class _Sum(torch.autograd.Function):
    """A sum over all processes. Its gradient on each is the sum of the gradients on all."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
