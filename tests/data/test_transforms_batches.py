"""The promise of every random transform: what is done to a sample is the sample's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_images import images
from torch import Tensor

from cifar_dist.data.transforms.color import ColorJitter, RandomGray
from cifar_dist.data.transforms.erasing import RandomErasing
from cifar_dist.data.transforms.geometry import RandomAffine, RandomPerspective
from cifar_dist.data.transforms.mixing import CutMix, MixUp
from cifar_dist.data.transforms.policies import AutoAugment, RandAugment, TrivialAugmentWide

Transform = Callable[[Tensor, int, int, Tensor], Tensor]


def mixing(transform: MixUp | CutMix) -> Transform:
    """With the partner that is the sample upside down: a function of the sample, as a partner's pixels are."""
    return lambda batch, seed, epoch, ids: transform(batch, batch.flip(2), seed, epoch, ids)[0]


TRANSFORMS: dict[str, Transform] = {
    "affine": RandomAffine(30, (0.2, 0.3), (0.7, 1.4), (10, 5), fill=(1, 2, 3)),
    "perspective": RandomPerspective(0.7, p=0.8),
    "jitter": ColorJitter(0.4, 0.4, 0.4, 0.1),
    "gray": RandomGray(0.5),
    "erasing": RandomErasing(0.8, fill=(9, 80, 255)),
    "rand-augment": RandAugment(),
    "trivial-augment": TrivialAugmentWide(),
    "auto-augment": AutoAugment(),
    "mixup": mixing(MixUp(0.3)),
    "cutmix": mixing(CutMix()),
}

pytestmark = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())


@settings(deadline=None, max_examples=20)
@given(
    chosen=st.lists(st.integers(0, 39), min_size=1, max_size=20),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 500),
)
def test_a_sample_is_the_same_in_any_batch(transform: Transform, chosen: list[int], seed: int, epoch: int) -> None:
    """In any company, at any place, even twice: so on any rank, whatever the batch size and the number of processes."""
    batch, ids, some = images(40), torch.arange(1000, 1040), torch.tensor(chosen)
    whole = transform(batch, seed, epoch, ids)
    assert torch.equal(transform(batch[some], seed, epoch, ids[some]), whole[some])


def test_seed_epoch_and_sample_all_matter(transform: Transform) -> None:
    batch, ids = images(1).expand(40, -1, -1, -1), torch.arange(40)
    first = transform(batch, 0, 0, ids)
    assert len(first.flatten(1).unique(dim=0)) > 1
    assert not torch.equal(transform(batch, 1, 0, ids), first)
    assert not torch.equal(transform(batch, 0, 1, ids), first)
    assert torch.equal(transform(batch, 0, 0, ids), first)


def test_the_input_and_the_global_generator_are_left_alone(transform: Transform) -> None:
    batch, ids = images(20), torch.arange(20)
    before, generator = batch.clone(), torch.get_rng_state()
    result = transform(batch, 0, 0, ids)
    result.zero_()
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 8)])
def test_small_and_no_images_are_fine(transform: Transform, size: tuple[int, int], channels: int) -> None:
    if channels == 1 and len(getattr(transform, "fill", (0,))) == 3:
        transform = dataclasses.replace(transform, fill=(7,))
    for count in (0, 1, 30):
        batch = images(count, *size, channels)
        assert transform(batch, 0, 0, torch.arange(count)).shape == batch.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_pixels_of_a_cpu(transform: Transform) -> None:
    batch, ids = images(500, 32, 32), torch.arange(500)
    on_gpu = transform(batch.cuda(), 3, 4, ids.cuda())
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), transform(batch, 3, 4, ids))
