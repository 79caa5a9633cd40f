"""The pools of a GPU, which have deterministic gradients, are those of a CPU: values and gradients, with ties.

And no pool makes a network compute in two memory formats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_dist.models import registry
from cifar_dist.models.pooling import GlobalMaxPool, GridAvgPool, max_of_window, means_of_windows

_IMAGES = 5
_MEAN = nn.AdaptiveAvgPool2d(1)
SHAPES = [(6, 32, 3, 3), (5, 7, 4, 4), (3, 5, 9, 6), (2, 4, 1, 1)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "of_cpu", "of_gpu"),
    [
        *((shape, GlobalMaxPool(), max_of_window) for shape in SHAPES),
        *((shape, GridAvgPool(3), partial(means_of_windows, grid=3)) for shape in [(6, 32, 3, 3), (3, 5, 9, 6)]),
        *((shape, GridAvgPool(2), partial(means_of_windows, grid=2)) for shape in [(5, 7, 4, 4), (3, 64, 8, 8)]),
    ],
)
def test_both_pools_are_equal(
    shape: tuple[int, ...],
    of_cpu: Callable[[Tensor], Tensor],
    of_gpu: Callable[[Tensor], Tensor],
    memory_format: torch.memory_format,
    dtype: torch.dtype,
) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu().to(dtype)  # many zeros
    found = []
    for pool in (of_cpu, of_gpu):
        given = images.to(memory_format=memory_format, copy=True).requires_grad_()
        pooled = pool(given)
        (gradient,) = torch.autograd.grad(pooled, given, torch.arange(pooled.numel()).view(pooled.shape).to(dtype))
        found.append((pooled.detach(), gradient))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("side", [(5, 6), (3, 3), (2, 7), (1, 9)])
def test_a_grid_that_does_not_divide_the_image_has_the_windows_of_torchs(side: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *side, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(means_of_windows(images, 4), GridAvgPool(4)(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_of_all_pixels_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    found = [
        (pool(images), *torch.autograd.grad(pool(images).square().sum(), images)) for pool in (GridAvgPool(1), _MEAN)
    ]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


class _ChannelsFirst(TorchDispatchMode):
    """The operations inside that write features in the memory format channels_first."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            is_features = isinstance(tensor, Tensor) and tensor.ndim == 4 and len(tensor) == _IMAGES
            if is_features and tensor[0, 0].numel() > 1 and tensor.is_contiguous() and tensor.shape[1] > 1:
                self.found.add(str(func))
        return result


@pytest.mark.parametrize("name", ["se-resnet", "resnet18", "wrn-16-8", "small-resnet", "speed-net", "custom-resnet"])
def test_a_network_computes_in_the_memory_format_of_its_images(name: str) -> None:
    model = registry.build(name, classes=10, options={})
    model.to(memory_format=torch.channels_last)
    images = torch.randn(_IMAGES, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with _ChannelsFirst() as operations:
        model(images).square().sum().backward()
    assert operations.found == set()


@pytest.mark.parametrize("pool", [GlobalMaxPool(), GridAvgPool(1), GridAvgPool(3)])
def test_a_pool_can_be_scripted(pool: nn.Module) -> None:
    images = torch.randn(2, 3, 7, 7)
    assert torch.equal(torch.jit.script(pool)(images), pool(images))


@pytest.mark.gpu
@pytest.mark.parametrize("pool", [GlobalMaxPool(), GridAvgPool(1), GridAvgPool(2), GridAvgPool(3)])
def test_a_gpu_has_the_gradients_with_deterministic_algorithms(pool: Callable[[Tensor], Tensor]) -> None:
    images = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for device in ("cpu", "cuda"):
            given = images.to(device).requires_grad_()
            (gradient,) = torch.autograd.grad(pool(given).square().sum(), given)
            found.append(gradient.cpu())
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found[1], found[0])
