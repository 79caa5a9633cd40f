"""MixUp and CutMix: drawn for each sample, and the same on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from support.small_packed import small_packed
from torch import Tensor

from cifar_dist.config import AugmentConfig, DataConfig
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import TrainBatches
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.mix import Mix
from cifar_dist.data.normalize import Normalize
from cifar_dist.data.order import own_parts
from cifar_dist.data.transforms import Mixing, Samples
from cifar_dist.data.transforms.crop import Crop
from cifar_dist.data.transforms.cutmix import CutMix
from cifar_dist.data.transforms.flip import Flip
from cifar_dist.data.transforms.gray import Gray
from cifar_dist.data.transforms.mixup import MixUp
from cifar_dist.errors import UserError

CPU = torch.device("cpu")
SEED, CLASSES = 5, 10
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return small_packed(tmp_path_factory.mktemp("mix"), "npy")


def mixer(*mixing: Mixing) -> Mix:
    config = AugmentConfig(transforms=(Crop(), Flip(), *mixing))
    augment = Augment(config, SEED, MEAN, Normalize(MEAN, STD, CPU, channels_last=False))
    return Mix(config, augment, CLASSES)


def shown(
    packed: Manifest, mix: Mix, *, processes: int = 1, accumulate: int = 1, resident: int = 4096
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the image and target that the network gets for each sample of an epoch."""

    def of_rank(rank: int) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        source = TrainBatches(
            packed,
            DataConfig(resident_mb=resident),
            seed=SEED,
            batch_size=12,
            parts=processes * accumulate,
            own=own_parts(processes * accumulate, rank, processes),
            device=CPU,
            mixed=mix.mixes,
        )
        for step in source.epoch(3):
            for batch in step:
                images, targets = mix(batch, 3)
                for row in range(len(batch.ids)):
                    if batch.weight[row]:
                        yield int(batch.ids[row]), (images[row], targets[row])

    return dict(item for rank in range(processes) for item in of_rank(rank))


@pytest.mark.parametrize(("processes", "accumulate", "resident"), [(2, 1, 4096), (3, 2, 0), (1, 4, 0)])
def test_a_sample_is_mixed_the_same_way_on_any_rank(
    packed: Manifest, processes: int, accumulate: int, resident: int
) -> None:
    mix = mixer(MixUp(p=0.4, alpha=0.7), CutMix(p=0.5, alpha=0.7))
    alone = shown(packed, mix)
    others = shown(packed, mix, processes=processes, accumulate=accumulate, resident=resident)
    assert alone.keys() == others.keys()
    for sample, (image, target) in alone.items():
        assert torch.equal(image, others[sample][0])
        assert torch.equal(target, others[sample][1])


def test_each_sample_is_mixed_in_one_way_or_not_at_all(packed: Manifest) -> None:
    """The result equals that of the chosen mixer alone; samples that are drawn for neither do not change."""
    both = shown(packed, mixer(MixUp(p=0.4), CutMix(p=0.3)))
    plain = shown(packed, mixer())
    mixup, cutmix = shown(packed, mixer(MixUp(p=1.0))), shown(packed, mixer(CutMix(p=1.0)))
    ways = []
    for sample, (image, target) in both.items():
        same = [torch.equal(image, way[sample][0]) for way in (plain, mixup, cutmix)]
        assert any(same)
        ways.append(same.index(True))
        assert target.sum() == pytest.approx(1, abs=1e-6)
        if same[0]:
            assert target.argmax() == plain[sample][1]
            assert target.max() == 1
    assert set(ways) == {0, 1, 2}


def test_without_mixing_the_labels_stay_integers(packed: Manifest) -> None:
    mix = mixer()
    assert not mix.mixes
    assert all(target.dtype == torch.int64 for _, target in shown(packed, mix).values())


def test_a_mixer_mixes_the_same_samples_alone_or_before_another(packed: Manifest) -> None:
    """A second mixer of a kind draws its own numbers, and mixes the samples that the first leaves."""
    first = shown(packed, mixer(MixUp(p=0.5)))
    both = shown(packed, mixer(MixUp(p=0.5), MixUp(p=0.5)))
    plain = shown(packed, mixer())
    changed = {sample for sample, (image, _) in first.items() if not torch.equal(image, plain[sample][0])}
    assert 0 < len(changed) < len(first)
    assert all(torch.equal(both[sample][0], first[sample][0]) for sample in changed)
    assert not any(torch.equal(both[sample][0], plain[sample][0]) for sample in first.keys() - changed)


def test_mixing_comes_last_and_in_one_way_at_most() -> None:
    with pytest.raises(ValueError, match=r"^transforms: mixup and cutmix are alternatives; .* p is 1.4, above 1"):
        AugmentConfig(transforms=(MixUp(p=0.7), CutMix(p=0.7)))
    with pytest.raises(ValueError, match=r"^transforms: mixup mixes finished images and gray follows it"):
        AugmentConfig(transforms=(Flip(), MixUp(p=0.7), Gray(), CutMix(p=0.1)))


@dataclass(frozen=True)
class Returns(Mixing):
    """What the author of a mixing plug-in may return by mistake."""

    what: str = ""

    def __call__(self, images: Tensor, partners: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        share = samples.uniform("share")
        mistakes: dict[str, object] = {
            "images alone": images,
            "nothing": None,
            "the factor of the images": (images, share[:, None, None, None]),
            "a number": (images, 0.5),
            "other images": (images[..., ::2], share),
            "halves": (images.half(), share),
            "a share above 1": (images, share + 1.5),
            "no number": (images, share * float("nan")),
        }
        return mistakes[self.what]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (
            "images alone",
            r"mine returned torch\.float32 \[12, 3, 6, 5\]; return images, torch\.float32 \[12, 3, 6, 5\], ",
        ),
        ("nothing", "returned NoneType; "),
        ("the factor of the images", r" and torch\.float32 \[12, 1, 1, 1\]; .* own label, torch\.float32 \[12\]$"),
        ("a number", " and float; "),
        ("other images", r"returned torch\.float32 \[12, 3, 6, 3\] and "),
        ("halves", r"returned torch\.float16 \[12, 3, 6, 5\] and "),
        (
            "a share above 1",
            r"returned a share of (1\.[5-9]|2\.)\d*; a sample's share of its own label must be in \[0, 1\]",
        ),
        ("no number", "returned a share of nan; "),
    ],
)
def test_a_plug_in_that_returns_no_images_and_shares_is_refused(packed: Manifest, what: str, says: str) -> None:
    with pytest.raises(UserError, match=f"^augment.transforms: .*{says}"):
        shown(packed, mixer(Returns(name="mine", what=what)))


@dataclass(frozen=True)
class Blended(Mixing):
    """Blends half of each image with its partner."""

    def __call__(self, images: Tensor, partners: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        share = 0.5 + samples.uniform("share") / 2
        return images * share[:, None, None, None] + partners * (1 - share)[:, None, None, None], share


@dataclass(frozen=True)
class BlendedInPlace(Mixing):
    """As above, in the memory of the images, and spoils that of their partners."""

    def __call__(self, images: Tensor, partners: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        share = 0.5 + samples.uniform("share") / 2
        images *= share[:, None, None, None]
        images += partners * (1 - share)[:, None, None, None]
        partners.zero_()
        return images, share


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_a_plug_in_may_mix_in_place(packed: Manifest, p: float) -> None:
    """The images that are not chosen, and those that are partners, stay as they were."""
    mixes = [mixer(kind(name="mine", p=p), MixUp(p=1 - p)) for kind in (Blended, BlendedInPlace)]
    expected, found = (shown(packed, mix) for mix in mixes)
    for sample, (image, target) in expected.items():
        assert torch.equal(image, found[sample][0])
        assert torch.equal(target, found[sample][1])
