"""MixUp and CutMix in a batch: drawn for each sample, the same on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator

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
from cifar_dist.errors import UserError

CPU = torch.device("cpu")
SEED, CLASSES = 5, 10
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return small_packed(tmp_path_factory.mktemp("mix"), "npy")


def mixer(**settings: float) -> Mix:
    config = AugmentConfig(**settings)  # type: ignore[arg-type]  # the fields given here are numbers
    augment = Augment(config, SEED, MEAN, Normalize(MEAN, STD, CPU, channels_last=False))
    return Mix(config, SEED, augment, CLASSES)


def shown(
    packed: Manifest, mix: Mix, *, processes: int = 1, accumulate: int = 1, resident: int = 4096
) -> dict[int, tuple[Tensor, Tensor]]:
    """What the network is shown of each sample of an epoch."""

    def of_rank(rank: int) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        source = TrainBatches(
            packed,
            DataConfig(resident_mb=resident),
            seed=SEED,
            batch_size=12,
            accumulate=accumulate,
            rank=rank,
            world_size=processes,
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
def test_a_sample_is_mixed_alike_whoever_works_on_it(
    packed: Manifest, processes: int, accumulate: int, resident: int
) -> None:
    mix = mixer(mixup=0.4, cutmix=0.5, mix_alpha=0.7)
    alone = shown(packed, mix)
    others = shown(packed, mix, processes=processes, accumulate=accumulate, resident=resident)
    assert alone.keys() == others.keys()
    for sample, (image, target) in alone.items():
        assert torch.equal(image, others[sample][0])
        assert torch.equal(target, others[sample][1])


def test_each_sample_is_mixed_one_way_or_none(packed: Manifest) -> None:
    """With the settings of one alone it looks the same, and what is drawn for neither stays as it was."""
    both = shown(packed, mixer(mixup=0.4, cutmix=0.3))
    plain = shown(packed, mixer())
    mixup, cutmix = shown(packed, mixer(mixup=1.0)), shown(packed, mixer(cutmix=1.0))
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


def test_without_mixing_the_labels_stay_whole_numbers(packed: Manifest) -> None:
    mix = mixer()
    assert not mix.mixes
    assert all(target.dtype == torch.int64 for _, target in shown(packed, mix).values())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mixup": 0.7, "cutmix": 0.7}, "their sum is above 1"),
        ({"mixup": 1.5}, "mixup 1.5 is a probability"),
        ({"mixup": 0.5, "mix_alpha": 0.0}, "mix_alpha 0.0 must be positive"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, float], says: str) -> None:
    with pytest.raises((UserError, ValueError), match=says):
        mixer(**settings)
