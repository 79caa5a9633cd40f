"""The guarantee of every random transform: a sample's result does not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_images import images
from support.transform_settings import OTHER
from torch import Tensor

from cifar_dist.config import TransformConfig
from cifar_dist.data.transforms import Mixing, Samples, Transform

Apply = Callable[[Tensor, int, int, Tensor], Tensor]


def applied(name: str) -> Apply:
    """Return a shipped transform as a function of (images, seed, epoch, ids)."""
    transform = TransformConfig.variants[name](**OTHER.get(name, {}))  # type: ignore[arg-type]

    def apply(batch: Tensor, seed: int, epoch: int, ids: Tensor) -> Tensor:
        samples = Samples(seed, epoch, ids, (9, 80, 255)[: batch.shape[1]])
        if isinstance(transform, Mixing):
            # With the partner that is the sample upside down: a function of the sample, as a partner's pixels are.
            return transform(batch, batch.flip(2), samples)[0]
        assert isinstance(transform, Transform)
        return transform(batch, samples)

    apply.__name__ = name
    return apply


pytestmark = pytest.mark.parametrize(
    "transform", [applied(name) for name in TransformConfig.variants], ids=[*TransformConfig.variants]
)


@settings(deadline=None, max_examples=20)
@given(
    chosen=st.lists(st.integers(0, 39), min_size=1, max_size=20),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 500),
)
def test_a_sample_is_the_same_in_any_batch(transform: Apply, chosen: list[int], seed: int, epoch: int) -> None:
    """Whatever else is in the batch, in any position, even twice: hence on any rank, at any batch size."""
    batch, ids, some = images(40), torch.arange(1000, 1040), torch.tensor(chosen)
    whole = transform(batch, seed, epoch, ids)
    assert torch.equal(transform(batch[some], seed, epoch, ids[some]), whole[some])


def test_seed_epoch_and_sample_all_matter(transform: Apply) -> None:
    batch, ids = images(1).expand(40, -1, -1, -1), torch.arange(40)
    first = transform(batch, 0, 0, ids)
    assert len(first.flatten(1).unique(dim=0)) > 1
    assert not torch.equal(transform(batch, 1, 0, ids), first)
    assert not torch.equal(transform(batch, 0, 1, ids), first)
    assert torch.equal(transform(batch, 0, 0, ids), first)


def test_the_input_and_the_global_generator_are_left_alone(transform: Apply) -> None:
    batch, ids = images(20), torch.arange(20)
    before, generator = batch.clone(), torch.get_rng_state()
    result = transform(batch, 0, 0, ids)
    result.zero_()
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 8)])
def test_small_and_no_images_are_fine(transform: Apply, size: tuple[int, int]) -> None:
    """Those that change colours refuse images without them."""
    needs_colors = getattr(TransformConfig.variants[transform.__name__], "needs_colors", False)
    for channels in (3,) if needs_colors else (1, 3):
        for count in (0, 1, 30):
            batch = images(count, *size, channels)
            assert transform(batch, 0, 0, torch.arange(count)).shape == batch.shape


@pytest.mark.gpu
def test_a_gpu_gives_the_pixels_of_a_cpu(transform: Apply) -> None:
    batch, ids = images(500, 32, 32), torch.arange(500)
    on_gpu = transform(batch.cuda(), 3, 4, ids.cuda())
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), transform(batch, 3, 4, ids))
