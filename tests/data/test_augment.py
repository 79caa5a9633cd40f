"""Augmentation against torchvision's reference, and its guarantee: a sample's result does not depend on its batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from cifar_dist.config import AugmentConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.randomness import as_uniform, bits, hash_ids
from cifar_dist.data.transforms import Samples, Transform, occurrences
from cifar_dist.data.transforms.crop import Crop
from cifar_dist.data.transforms.cutout import Cutout
from cifar_dist.data.transforms.flip import Flip
from cifar_dist.data.transforms.gray import Gray
from cifar_dist.errors import UserError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
FILL = [125, 123, 114]  # MEAN in 0..255, rounded


def images(count: int, height: int = 12, width: int = 10) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def augment(config: AugmentConfig, seed: int = 0, *, channels_last: bool = False) -> Augment:
    return Augment(config, seed, MEAN, Normalize(MEAN, STD, torch.device("cpu"), channels_last))


def uniform(seed: int, epoch: int, ids: Tensor, purpose: str) -> Tensor:
    return as_uniform(hash_ids(seed, epoch, ids, purpose, 0))


def integers(seed: int, epoch: int, ids: Tensor, purpose: str, below: int, draw: int = 0) -> Tensor:
    return bits(seed, epoch, ids, purpose, draw) % below


def by_torchvision(config: AugmentConfig, seed: int, image: Tensor, sample: int, epoch: int) -> Tensor:
    """Transform one uint8 image [h, w, c] with torchvision, using the parameters of the sample."""
    height, width, _ = image.shape
    one = torch.tensor(sample)
    image = image.permute(2, 0, 1)
    for transform, occurrence in occurrences(config.transforms):
        purpose = f"{transform.name} {occurrence + 1}" if occurrence else transform.name
        if isinstance(transform, Crop):
            fill = FILL if transform.fill == "constant" else None
            image = reference.pad(image, [transform.pad] * 4, fill=fill, padding_mode=transform.fill)
            top, left = (int(integers(seed, epoch, one, purpose, 2 * transform.pad + 1, draw)) for draw in (0, 1))
            image = reference.crop(image, top, left, height, width)
        elif isinstance(transform, Flip):
            toss = uniform(seed, epoch, one, purpose) < 0.5
            if transform.kind == "alternating":
                toss = (integers(seed, 0, one, purpose, 2) + epoch) % 2 == 1
            image = reference.horizontal_flip(image) if bool(toss) else image
        elif isinstance(transform, Cutout):
            row, column = (int(integers(seed, epoch, one, purpose, side, i)) for i, side in enumerate((height, width)))
            top, left = row - transform.side // 2, column - transform.side // 2
            rows = range(max(top, 0), min(top + transform.side, height))
            columns = range(max(left, 0), min(left + transform.side, width))
            color = torch.tensor(FILL, dtype=torch.uint8)[:, None, None]
            image = reference.erase(image, rows.start, columns.start, len(rows), len(columns), color)
        else:
            assert isinstance(transform, Gray)
            if transform.p:
                image = reference.rgb_to_grayscale(image, num_output_channels=3)
    return image.permute(1, 2, 0)


TRANSFORMS = st.one_of(
    st.builds(Crop, pad=st.integers(0, 9), fill=st.sampled_from(["constant", "reflect"])),
    st.builds(Flip, kind=st.sampled_from(["random", "alternating"])),
    st.builds(Cutout, side=st.integers(0, 15)),
    st.builds(Gray, p=st.sampled_from([0.0, 1.0])),  # takes another layout of the images than the others
)
CONFIGS = st.lists(TRANSFORMS, max_size=5).map(lambda found: AugmentConfig(transforms=tuple(found)))
SEEDS, EPOCHS, IDS = st.integers(0, 2**31 - 1), st.integers(0, 500), st.integers(0, 2**40)


@settings(deadline=None, max_examples=150)
@given(CONFIGS, SEEDS, EPOCHS, st.lists(IDS, min_size=1, max_size=4))
def test_pixels_are_torchvisions(config: AugmentConfig, seed: int, epoch: int, ids: list[int]) -> None:
    batch = images(len(ids))
    result = augment(config, seed).pixels(batch, torch.tensor(ids), epoch)
    assert result.dtype == torch.uint8
    for row, sample in enumerate(ids):
        expected = by_torchvision(config, seed, batch[row], sample, epoch)
        assert torch.equal(result[row], expected), f"sample {sample}"


@settings(deadline=None)
@given(CONFIGS, st.data(), SEEDS, EPOCHS)
def test_a_sample_is_the_same_in_any_batch(config: AugmentConfig, data: st.DataObject, seed: int, epoch: int) -> None:
    """Whatever else is in the batch, and in any position: hence on any rank, at any batch size."""
    batch, ids = images(7), torch.arange(100, 107)
    whole = augment(config, seed)(batch, ids, epoch)
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=9)))
    assert torch.equal(augment(config, seed)(batch[chosen], ids[chosen], epoch), whole[chosen])


@pytest.mark.gpu
def test_a_gpu_gives_the_pixels_of_a_cpu() -> None:
    transforms = (Flip(kind="alternating"), Crop(fill="constant"), Cutout(side=5))
    config, ids = AugmentConfig(transforms=transforms), torch.arange(64)
    on_gpu = augment(config).pixels(images(64).cuda(), ids.cuda(), 3)
    assert torch.equal(on_gpu.cpu(), augment(config).pixels(images(64), ids, 3))


def test_the_input_is_not_changed() -> None:
    batch = images(4)
    before = batch.clone()
    augment(AugmentConfig(transforms=(Crop(pad=3), Cutout(side=5))))(batch, torch.arange(4), 0)
    assert torch.equal(batch, before)


def test_every_crop_occurs_equally_often() -> None:
    """Judged by the position of a marked pixel: 25 crops, equally frequent within six standard deviations."""
    count = 25 * 400
    marked = torch.zeros(count, 9, 9, 3, dtype=torch.uint8)
    marked[:, 4, 4] = 255
    config = AugmentConfig(transforms=(Crop(pad=2, fill="constant"),))
    result = augment(config).pixels(marked, torch.arange(count), 0)
    places = (result[..., 0] == 255).reshape(count, -1).float().argmax(dim=1)
    unique, counts = places.unique(return_counts=True)
    assert len(unique) == 25
    assert (counts - 400).abs().max() < 6 * 400**0.5


@settings(deadline=None)
@given(SEEDS, EPOCHS)
def test_alternating_shows_both_sides_in_two_epochs(seed: int, epoch: int) -> None:
    flip = Flip(kind="alternating")
    sides = [flip.chosen(Samples(seed, when, torch.arange(64))).tolist() for when in range(epoch, epoch + 3)]
    assert all(now != then for now, then in zip(sides[0], sides[1], strict=True))
    assert sides[0] == sides[2]


@pytest.mark.parametrize("kind", ["random", "alternating"])
def test_half_of_the_samples_are_flipped(kind: Literal["random", "alternating"]) -> None:
    flipped = Flip(kind=kind).chosen(Samples(0, 0, torch.arange(10_000)))
    assert abs(int(flipped.sum()) - 5000) < 6 * 50


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_is_torchvisions(channels_last: bool, channels: int) -> None:
    batch = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, channels)
    mean, std = MEAN[:channels], STD[:channels]
    result = Normalize(mean, std, torch.device("cpu"), channels_last)(batch)
    scaled = reference.to_dtype(batch.permute(0, 3, 1, 2), torch.float32, scale=True)
    torch.testing.assert_close(result, reference.normalize(scaled, list(mean), list(std)), rtol=1e-6, atol=1e-6)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=layout)


def test_memory_layouts_produce_the_same_numbers() -> None:
    config, ids = AugmentConfig(transforms=(Crop(pad=2), Cutout(side=3))), torch.arange(5)
    plain, last = (augment(config, channels_last=layout)(images(5), ids, 1) for layout in (False, True))
    assert torch.equal(plain, last)


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    """The standard deviation that pack measures for it is 0."""
    white = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
    result = Normalize((0.5, 1.0, 0.5), (0.2, 0.0, 0.2), torch.device("cpu"), channels_last=False)(white)
    assert result.isfinite().all()
    assert result[:, 1].abs().max() < 1e-6


@pytest.mark.parametrize("fill", ["reflect", "constant"])
def test_a_crop_that_pads_as_much_as_the_image_is_refused(fill: Literal["reflect", "constant"]) -> None:
    refused = augment(AugmentConfig(transforms=(Crop(pad=10, fill=fill),)))
    for use in (lambda: refused.check((12, 10, 3)), lambda: refused(images(2), torch.arange(2), 0)):
        with pytest.raises(UserError, match=r"crop\.pad 10 is too large for images of 10x12; use at most 9") as caught:
            use()
        assert "\n" not in str(caught.value)
    for crop in (Crop(pad=9, fill=fill), Crop(pad=0, fill=fill)):
        augment(AugmentConfig(transforms=(crop,))).check((12, 10, 3))


@dataclass(frozen=True)
class InvertedInPlace(Transform):
    """A plug-in that changes what it is given."""

    def __call__(self, images: Tensor, samples: Samples) -> Tensor:
        images ^= 255
        return images


@dataclass(frozen=True)
class InvertedInAnyLayout(InvertedInPlace):
    planar: ClassVar[bool] = False


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [InvertedInPlace, InvertedInAnyLayout])
def test_a_plug_in_may_transform_in_place(kind: type[InvertedInPlace], channels: int) -> None:
    """The batch is read again: by the next view, by the second pass of a step of sharpness-aware minimisation."""
    given, ids = images(5)[..., :channels].contiguous(), torch.arange(5)
    normalize = Normalize(MEAN[:channels], STD[:channels], torch.device("cpu"), channels_last=False)
    transform = Augment(AugmentConfig(transforms=(kind(name="mine"),)), 0, MEAN[:channels], normalize)
    stored = given.clone()
    assert torch.equal(transform.pixels(given, ids, 0), 255 - stored)
    assert torch.equal(given, stored)
