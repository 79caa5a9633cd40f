"""The random numbers of every decision: frozen, identical on all devices, and statistically independent."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifar_dist.data.randomness import bits, permutation, step_seed
from cifar_dist.data.transforms import Samples

SEEDS = st.integers(0, 2**31 - 1)
EPOCHS = st.integers(-1024, 10**6)
COUNTERS = st.integers(-(2**63), 2**63 - 1)


def reference(seed: int, epoch: int, sample: int, purpose: str, draw: int) -> int:
    """The documented mixer in plain integers: that of SplitMix64, applied once per counter word."""
    word = 0
    for counter in (seed, epoch, zlib.crc32(purpose.encode()), draw, sample):
        word = ((word + 0x9E3779B97F4A7C15) ^ counter) % 2**64
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % 2**64
        word ^= word >> 31
    return word >> 1


def uniform(seed: int, epoch: int, ids: Tensor, purpose: str, draw: int | range = 0) -> Tensor:
    return Samples(seed, epoch, ids).uniform(purpose, draw)


def integers(seed: int, epoch: int, ids: Tensor, purpose: str, below: int, draw: int | range = 0) -> Tensor:
    return Samples(seed, epoch, ids).integers(purpose, below, draw)


def test_random_numbers_have_not_changed() -> None:
    """Frozen: a change would alter every run that anyone has trained."""
    ids = torch.tensor([0, 1, 2])
    assert bits(0, 0, ids, "flip").tolist() == [808946631622090769, 580117810868683559, 554093325450518015]
    assert bits(1, 0, ids[:1], "flip").tolist() == [2551334669359310708]
    assert bits(0, 1, ids[:1], "flip").tolist() == [8804949145332673060]
    assert bits(0, 0, ids[:1], "crop").tolist() == [5934357470767112842]
    assert bits(0, 0, ids[:1], "flip", draw=1).tolist() == [3284476269532743100]
    assert bits(2**31 - 1, -3, torch.tensor([2**40]), "samples", 7).tolist() == [2499761027736909250]
    assert permutation(0, 0, 10, "shards").tolist() == [3, 0, 8, 2, 7, 4, 5, 6, 9, 1]
    assert step_seed(0, 0, 0) == 1448236217177040855
    assert step_seed(1, 100, 3) == 7655340883474200551


@settings(deadline=None)
@given(SEEDS, EPOCHS, st.lists(COUNTERS, min_size=1, max_size=5), st.text(max_size=8), st.integers(0, 9))
def test_it_is_the_documented_mixer(seed: int, epoch: int, ids: list[int], purpose: str, draw: int) -> None:
    expected = [reference(seed, epoch, sample, purpose, draw) for sample in ids]
    assert bits(seed, epoch, torch.tensor(ids), purpose, draw).tolist() == expected


@settings(deadline=None)
@given(st.data(), SEEDS, EPOCHS, st.integers(1, 65))
def test_a_sample_has_the_same_number_in_any_batch(data: st.DataObject, seed: int, epoch: int, count: int) -> None:
    """Alone, in another position or shape, or beside other samples: vectorisation must not matter."""
    ids = torch.arange(count)
    together = bits(seed, epoch, ids, "crop")
    place = data.draw(st.integers(0, count - 1))
    assert bits(seed, epoch, ids[place], "crop") == together[place]
    order = torch.tensor(data.draw(st.permutations(range(count))))
    assert torch.equal(bits(seed, epoch, order, "crop"), together[order])
    assert torch.equal(bits(seed, epoch, ids[None, :, None], "crop"), together[None, :, None])
    assert torch.equal(bits(seed, epoch, ids.repeat_interleave(2)[::2], "crop"), together)


def below_77(seed: int, epoch: int, ids: Tensor, purpose: str, draw: int | range = 0) -> Tensor:
    return integers(seed, epoch, ids, purpose, 77, draw)


@settings(deadline=None)
@given(SEEDS, EPOCHS, st.lists(COUNTERS, min_size=1, max_size=5), st.integers(0, 30), st.integers(1, 5))
def test_several_draws_at_once_are_those_one_by_one(
    seed: int, epoch: int, counters: list[int], first: int, count: int
) -> None:
    draws = range(first, first + count)
    for ids in (torch.tensor(counters), torch.tensor(counters[0]), torch.tensor([counters] * 2)):
        for number in (bits, uniform, below_77):
            together = number(seed, epoch, ids, "crop", draws)
            assert torch.equal(together, torch.stack([number(seed, epoch, ids, "crop", draw) for draw in draws]))


@pytest.mark.gpu
def test_a_gpu_gives_the_bits_of_a_cpu() -> None:
    ids = torch.arange(100_000) * 977
    for numbers in (bits, uniform):
        assert torch.equal(numbers(3, 5, ids.cuda(), "flip", 1).cpu(), numbers(3, 5, ids, "flip", 1))


@settings(deadline=None)
@given(SEEDS, EPOCHS, st.lists(COUNTERS, min_size=1, max_size=50), st.integers(1, 2**40))
def test_random_numbers_are_within_their_ranges(seed: int, epoch: int, counters: list[int], below: int) -> None:
    ids = torch.tensor(counters)
    assert bits(seed, epoch, ids, "a").min() >= 0
    fractions = uniform(seed, epoch, ids, "a")
    assert fractions.dtype == torch.float32
    assert 0 <= fractions.min() <= fractions.max() < 1
    assert torch.equal(fractions.double() * 2**24, (fractions.double() * 2**24).floor()), "exact multiples of 2**-24"
    whole = integers(seed, epoch, ids, "a", below)
    assert whole.dtype == torch.int64
    assert 0 <= whole.min() <= whole.max() < below


def chi_square(cells: Tensor, number: int) -> float:
    """Return the distance of counts from uniform, in standard deviations of the chi-square distribution."""
    counts = torch.bincount(cells, minlength=number).double()
    expected = counts.sum().item() / number
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return float(statistic - (number - 1)) / math.sqrt(2 * (number - 1))


IDS = torch.arange(1 << 16)


@pytest.mark.parametrize("first_bit", [0, 15, 31, 47, 55])
def test_every_part_of_the_word_is_uniform(first_bit: int) -> None:
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (2**31 - 1, 199)):
        cells = (bits(seed, epoch, IDS, "flip") >> first_bit) & 255
        assert abs(chi_square(cells, 256)) < 6


def test_small_ranges_are_uniform() -> None:
    for below in (2, 9, 32, 33):
        assert abs(chi_square(integers(0, 0, IDS, "crop", below), below)) < 6


WORDS = {
    "one": bits(2, 5, IDS, "flip"),
    "the next sample": bits(2, 5, IDS + 1, "flip"),
    "the next epoch": bits(2, 6, IDS, "flip"),
    "the next seed": bits(3, 5, IDS, "flip"),
    "seed and epoch changed places": bits(5, 2, IDS, "flip"),
    "another purpose": bits(2, 5, IDS, "crop"),
    "another draw": bits(2, 5, IDS, "flip", 1),
    "a random view": bits(2, -5, IDS, "flip"),
}


@pytest.mark.parametrize("other", list(WORDS)[1:])
def test_what_differs_in_one_argument_is_independent(other: str) -> None:
    """All pairs of 4 bits, high and low, are equally frequent: one number carries no information about the other."""
    for shift in (59, 0):
        pairs = (WORDS["one"] >> shift) % 16 * 16 + (WORDS[other] >> shift) % 16
        assert abs(chi_square(pairs, 256)) < 6
    assert (WORDS["one"] == WORDS[other]).sum() == 0


@settings(deadline=None, max_examples=50)
@given(SEEDS, EPOCHS, st.integers(0, 300))
def test_a_permutation_contains_each_number_once(seed: int, epoch: int, count: int) -> None:
    order = permutation(seed, epoch, count, "shards")
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(count))


def test_all_permutations_are_equally_likely() -> None:
    numbers = []
    for seed in range(2400):
        a, b, c, d = permutation(seed, 0, 4, "shards").tolist()
        numbers.append(64 * a + 16 * b + 4 * c + d)
    _, compact = torch.tensor(numbers).unique(return_inverse=True)
    assert int(compact.max()) == 23, "all 24 occur"
    assert abs(chi_square(compact, 24)) < 6


def test_dropout_differs_between_seeds_steps_and_ranks() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(5) for step in range(50) for rank in range(8)}
    assert len(seeds) == 5 * 50 * 8
    for seed in seeds:
        assert 0 <= seed < 2**63, "what torch.manual_seed takes"
