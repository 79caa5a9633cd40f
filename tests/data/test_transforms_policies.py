"""The policies against torchvision's: the operations, their magnitudes, and how often each is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from support.small_images import assert_unrelated, images
from torch import Tensor
from torchvision.transforms import v2

from cifar_dist.data.operations.policies import OPERATIONS, Round, apply_rounds
from cifar_dist.data.transforms import Policy, Samples
from cifar_dist.data.transforms.autoaugment import CIFAR10, AutoAugment
from cifar_dist.data.transforms.randaugment import RandAugment
from cifar_dist.data.transforms.trivialaugment import TrivialAugment

SIZE = (32, 24)
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
BLENDED = ("Color", "Contrast", "Sharpness")  # one level of tolerance, as their own tests explain
SPACES = {
    "auto": (v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), 10),
    "rand": (v2.RandAugment(), 31),
    "trivial": (v2.TrivialAugmentWide(), 31),
}


def torchvisions_magnitudes(space: str, name: str) -> list[float]:
    """Every magnitude that torchvision may draw for an operation, with its sign."""
    policy, bins = SPACES[space]
    levels, signed = policy._AUGMENTATION_SPACE[name]
    values = levels(bins, *SIZE)
    if values is None:
        return [0.0]
    assert signed == (name in SIGNED)
    return [*map(float, values), *(-float(value) for value in values if signed)]


def by_torchvision(image: Tensor, name: str, magnitude: float, fill: int) -> Tensor:
    applied = SPACES["auto"][0]._apply_image_or_video_transform(
        image, name, magnitude, interpolation="nearest", fill={torch.Tensor: [float(fill)]}
    )
    assert isinstance(applied, Tensor)
    return applied


@pytest.mark.parametrize("fill", [0, 128])
@pytest.mark.parametrize("space", ["rand", "trivial"])
def test_operations_are_torchvisions_at_every_magnitude(space: str, fill: int) -> None:
    """All operations and magnitudes mixed in one batch."""
    cases = [(name, m) for name in OPERATIONS[:-1] for m in torchvisions_magnitudes(space, name)] + [("Invert", 0.0)]
    batch = images(len(cases), *SIZE)
    operation = torch.tensor([OPERATIONS.index(name) for name, _ in cases])
    result = apply_rounds(batch, [(operation, torch.tensor([magnitude for _, magnitude in cases]))], (fill,))
    for row, (name, magnitude) in enumerate(cases):
        expected = by_torchvision(batch[row], name, magnitude, fill)
        differs = (result[row].to(torch.int32) - expected.to(torch.int32)).abs()
        if name in ("ShearX", "ShearY", "Rotate"):
            # Where a hair less or more gives another pixel, the source is on the border of two: float32 decides.
            less, more = (by_torchvision(batch[row], name, magnitude + hair, fill) for hair in (-1e-4, 1e-4))
            differs = differs * (less == more)
        assert int(differs.max()) <= (name in BLENDED), f"{name} {magnitude}"


def rounds_of(policy: Policy, count: int) -> list[Round]:
    return list(policy.rounds(Samples(4, 2, torch.arange(count)), *SIZE))


def assert_close_to(seen: int, expected: float) -> None:
    assert abs(seen - expected) <= 6 * math.sqrt(expected)


@pytest.mark.parametrize("level", [0, 9, 30])
def test_rand_augment_draws_each_operation_equally_often_at_its_level(level: int) -> None:
    rounds = rounds_of(RandAugment(operations=3, magnitude=level), 14 * 300)
    assert len(rounds) == 3
    for operation, magnitude in rounds:
        for index, name in enumerate(OPERATIONS[:-1]):
            values = magnitude[operation == index]
            assert_close_to(len(values), 300)
            allowed = torchvisions_magnitudes("rand", name)
            expected = allowed[level] if len(allowed) > 1 else 0.0
            assert set(values.abs().tolist()) == {abs(expected)}
            if name in SIGNED and expected:
                assert_close_to(int((values < 0).sum()), len(values) / 2)
        assert not (operation == OPERATIONS.index("Invert")).any()
        signed = magnitude[magnitude.ne(0) & operation.ge(1) & operation.le(len(SIGNED))]
        assert abs(int((signed < 0).sum()) - len(signed) / 2) <= 4 * math.sqrt(len(signed)) / 2
    assert_unrelated(torch.stack([operation.to(torch.float32) for operation, _ in rounds], dim=1))


def test_trivial_augment_draws_every_operation_and_magnitude() -> None:
    ((operation, magnitude),) = rounds_of(TrivialAugment(), 14 * 31 * 2 * 20)
    for index, name in enumerate(OPERATIONS[:-1]):
        values = magnitude[operation == index]
        assert_close_to(len(values), 31 * 2 * 20)
        assert set(values.tolist()) == set(torchvisions_magnitudes("trivial", name))


def test_auto_augment_has_torchvisions_policy() -> None:
    theirs = SPACES["auto"][0]._policies
    assert [tuple((name, p, level or 0) for name, p, level in pair) for pair in theirs] == list(CIFAR10)


def test_auto_augment_draws_each_pair_with_its_probabilities() -> None:
    """Each operation has the frequency of torchvision's 25 pairs and probabilities, and its magnitudes."""
    count = 25 * 800
    for place, (operation, magnitude) in enumerate(rounds_of(AutoAugment(), count)):
        for index, name in enumerate(OPERATIONS[1:], start=1):
            entries = [pair[place] for pair in CIFAR10 if pair[place][0] == name]
            values = magnitude[operation == index]
            assert_close_to(len(values), sum(800 * probability for _, probability, _ in entries))
            allowed = torchvisions_magnitudes("auto", name)
            levels = {abs(allowed[level]) if len(allowed) > 1 else 0.0 for _, p, level in entries if p}
            assert set(values.abs().tolist()) == levels


@pytest.mark.parametrize("policy", [RandAugment(), TrivialAugment(), AutoAugment()])
def test_a_policy_is_its_rounds_one_after_the_other(policy: Policy) -> None:
    batch, samples = images(40, *SIZE), Samples(1, 2, torch.arange(40), fill=(9, 80, 255))
    expected = batch
    for operation, magnitude in policy.rounds(samples, *SIZE):
        expected = apply_rounds(expected, [(operation, magnitude)], samples.fill)
    assert torch.equal(policy(batch, samples), expected)
    assert not torch.equal(expected, batch)


def test_no_operations_change_nothing() -> None:
    batch = images(7)
    assert torch.equal(RandAugment(operations=0)(batch, Samples(0, 0, torch.arange(7))), batch)


@pytest.mark.parametrize(
    ("policy", "wrong", "word"),
    [
        (RandAugment, {"magnitude": 31}, r"magnitude 31 must be in 0\.\.30"),
        (RandAugment, {"magnitude": -1}, "magnitude -1"),
        (RandAugment, {"operations": -1}, "operations -1"),
        (TrivialAugment, {"bins": 1}, "bins 1 must be in"),
    ],
)
def test_invalid_numbers_are_refused(policy: type[Policy], wrong: dict[str, int], word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}"):
        policy(**wrong)  # type: ignore[arg-type]  # numbers, and never the name
