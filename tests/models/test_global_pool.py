"""The pool of a GPU, which has deterministic gradients, is that of a CPU: values and gradients, with ties."""

from __future__ import annotations

import pytest
import torch

from cifar_dist.models.global_pool import GlobalMaxPool, pool_by_window


@pytest.mark.parametrize("shape", [(6, 32, 3, 3), (5, 7, 4, 4), (3, 5, 9, 6), (2, 4, 1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_pools_are_equal(shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu().to(dtype)  # many zeros
    found = []
    for pool in (GlobalMaxPool(), pool_by_window):
        given = images.to(memory_format=memory_format, copy=True).requires_grad_()
        pooled = pool(given)
        (gradient,) = torch.autograd.grad(pooled, given, torch.arange(pooled.numel()).view(pooled.shape).to(dtype))
        found.append((pooled.detach(), gradient))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
