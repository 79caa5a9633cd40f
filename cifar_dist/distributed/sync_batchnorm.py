"""Batch normalisation over the micro-batches of all processes, as one process that had them all would compute it.

In place of torch's ``SyncBatchNorm``, which computes on GPUs only and makes the host wait for the device in each layer.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from cifar_dist.errors import UserError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def check_batch_norms(network: nn.Module, name: str) -> None:
    """Refuse a network, called ``name``, that cannot be synchronised.

    Raises:
        UserError: it has no batch norms, or some with a computation of their own.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise UserError(
            f"train.sync_batchnorm has no effect: {name} has no batch normalisation; use --train.sync_batchnorm false"
        )
    for norm in norms:
        if type(norm) not in _PLAIN:
            raise UserError(
                f"train.sync_batchnorm cannot replace the {type(norm).__name__} of {name}, which is not torch's "
                "BatchNorm; use --train.sync_batchnorm false"
            )


def synchronise_batch_norms(network: nn.Module) -> None:
    """Replace the batch norms of a network; parameters and buffers stay the same tensors."""
    for parent in [*network.modules()]:
        for key, child in parent.named_children():
            if isinstance(child, _PLAIN):
                setattr(parent, key, _synchronised(child))


def _synchronised(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> SyncBatchNorm:
    new = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new._parameters, new._buffers, new.training = norm._parameters, norm._buffers, norm.training
    return new


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Every process must call it in training, with as many values as the others: micro-batches are of equal size."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept what the norm that it replaces accepted."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        normalised, mean, variance = _Normalise.apply(input, self.weight, self.bias, self.eps)
        self._track(mean, variance)
        return normalised  # type: ignore[no-any-return]

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics; ``variance`` is unbiased."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)


class _Normalise(torch.autograd.Function):
    """Ioffe, Szegedy: *Batch Normalization*, arXiv:1502.03167, with one exchange of sums in each direction."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise ``x``, [n, c, ...], of this process; returns also mean and unbiased variance of all, [c]."""
        variance, mean = torch.var_mean(x.float(), _axes(x), correction=0)
        # Float64: the square of a mean is subtracted from one that is hardly larger.
        own = torch.stack([mean.double(), variance.double() + mean.double().square()])
        dist.all_reduce(own)
        everyone = own / dist.get_world_size()
        mean, variance = everyone[0], (everyone[1] - everyone[0].square()).clamp(min=0)
        count = dist.get_world_size() * x.numel() // x.size(1)
        mean, variance, unbiased = mean.float(), variance.float(), (variance * count / (count - 1)).float()
        scale = (variance + eps).rsqrt()
        y = (x - _wide(mean, x)) * _wide(scale, x)
        if weight is not None and bias is not None:
            y = y * _wide(weight, x) + _wide(bias, x)
        ctx.save_for_backward(x, mean, scale, *([] if weight is None else [weight]))
        ctx.mark_non_differentiable(mean, unbiased)
        return y.to(x.dtype), mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """DDP and the other engines sum the gradients of weight and bias; those of the statistics are summed here."""
        x, mean, scale, *weight = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient = gradient.float()
        normal = (x - _wide(mean, x)) * _wide(scale, x)
        sums = torch.stack([gradient.sum(_axes(x)), (gradient * normal).sum(_axes(x))])
        of_bias, of_weight = sums if weight else (None, None)
        everyone = sums.clone()
        dist.all_reduce(everyone)
        everyone /= dist.get_world_size() * x.numel() // x.size(1)
        through = gradient - _wide(everyone[0], x) - normal * _wide(everyone[1], x)
        for factor in (scale, *weight):
            through = through * _wide(factor, x)
        return through.to(x.dtype), of_weight, of_bias, None


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """``values``, [c], in a shape that broadcasts over ``x``."""
    return values.view(-1, *[1] * (x.ndim - 2))
