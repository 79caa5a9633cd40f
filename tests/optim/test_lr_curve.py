"""The rates of a range test, and the suggestions from its curve."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_dist.config import Config, EvalConfig, ModelConfig, TrainConfig
from cifar_dist.config.settings import settings_of
from cifar_dist.errors import UserError
from cifar_dist.optim.lr_curve import Curve, difference, mean_curve, rates

GUESSING = 2.3


def falling(centre: float, noise: float = 0.0, steps: int = 120) -> Curve:
    """Return a loss that falls from 2.35 to 0.35 around ``centre``, and rises again from a hundred times that rate."""
    lrs = list(rates(1e-6, 1.0, steps))
    decades = np.log10(np.array(lrs) / centre)
    losses = 2.35 - 2 / (1 + np.exp(-4 * decades)) + 0.5 * np.exp(6 * (decades - 2))
    losses += noise * np.random.default_rng(0).standard_normal(steps)
    return Curve(lrs, losses.tolist(), GUESSING)


def test_rates_rise_by_one_factor() -> None:
    found = rates(1e-4, 1.0, 5)
    assert found == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0], rel=1e-12)


@pytest.mark.parametrize("centre", [1e-4, 6.58e-4, 5e-3])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_steepest_is_where_the_loss_falls_fastest(centre: float, noise: float) -> None:
    assert abs(math.log10(falling(centre, noise).steepest() / centre)) < 0.25


@pytest.mark.parametrize(("first", "last", "middle"), [(2.2, 39, 20), (2.2, 40, 21), (2.0, 35, 17)])
def test_the_valley_of_a_straight_fall_is_its_middle_without_the_first_tenth(
    first: float, last: int, middle: int
) -> None:
    """Rates so far apart that none is smoothed; a rise follows the lowest loss."""
    lrs = [10.0 ** (step - 40) for step in range(last + 3)]
    losses = [first - 0.05 * step for step in range(last + 1)]
    assert Curve(lrs, [*losses, losses[-1] + 0.1, losses[-1] + 0.2], GUESSING).valley() == lrs[middle]


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_valley_is_inside_the_fall(noise: float) -> None:
    curve = falling(1e-3, noise)
    end = curve.lrs[int(curve.smoothed().argmin())]
    assert 1e-6 < curve.valley() < end


def test_smoothing_keeps_a_straight_line_and_does_not_lag() -> None:
    lrs = list(rates(1e-5, 1e-1, 200))
    line = (3 - np.log10(lrs)).tolist()
    assert Curve(lrs, line, GUESSING).smoothed()[40:-40] == pytest.approx(line[40:-40], rel=1e-6)


def test_the_smoothing_window_has_a_standard_deviation_of_a_tenth_of_a_decade() -> None:
    smoothed = Curve(list(rates(1e-3, 1.0, 31)), [float(step == 15) for step in range(31)], GUESSING).smoothed()
    assert smoothed[15] / smoothed[16] == pytest.approx(math.exp(0.5), rel=1e-6)


@given(st.lists(st.floats(0.01, 1e6), max_size=80))
def test_a_suggestion_is_a_tested_rate_or_one_line(losses: list[float]) -> None:
    curve = Curve(list(rates(1e-6, 1.0, 80))[: len(losses)], losses, GUESSING)
    for suggest in (curve.steepest, curve.valley):
        try:
            found = suggest()
        except UserError:  # what it says has a test of its own
            continue
        assert found in curve.lrs


def test_a_loss_that_climbs_has_diverged_and_one_that_falls_has_not() -> None:
    curve = falling(1e-3)
    assert not Curve(curve.lrs[:80], curve.losses[:80], GUESSING).diverged()
    assert Curve(curve.lrs[:80], [*curve.losses[:79], 1e4], GUESSING).diverged()


def test_ten_steps_are_too_few_to_say_that_a_loss_has_diverged() -> None:
    lrs = list(rates(1e-3, 1.0, 30))
    assert not Curve(lrs[:10], [*[2.3] * 9, 1e4], GUESSING).diverged()
    assert Curve(lrs[:11], [*[2.3] * 10, 1e4], GUESSING).diverged()


@pytest.mark.parametrize(("losses", "diverged"), [((2.3, 6.0), False), ((2.3, 8.0), True)])
def test_a_loss_that_never_fell_has_diverged_at_three_times_that_of_guessing(
    losses: tuple[float, float], diverged: bool
) -> None:
    curve = Curve(list(rates(1e-3, 1.0, 60)), [losses[0]] * 30 + [losses[1]] * 30, GUESSING)
    assert curve.diverged() == diverged


@pytest.mark.parametrize(("lowest", "diverged"), [(2.22, False), (2.1, True)])
def test_the_loss_of_a_small_fall_cannot_be_lost(lowest: float, diverged: bool) -> None:
    curve = Curve(list(rates(1e-3, 1.0, 60)), [2.3] * 20 + [lowest] * 20 + [2.3] * 20, GUESSING)
    assert curve.diverged() == diverged


def test_what_follows_the_first_divergence_is_ignored() -> None:
    """The losses of ``demo`` at rates up to 10 fall again above a rate at which no training works."""
    lrs = list(rates(1e-3, 10.0, 120))
    falling_twice = [
        2.3 - 0.75 * math.exp(-(math.log10(lr / 0.25) ** 2) / 0.5) - 1.3 * math.exp(-(math.log10(lr / 4) ** 2) / 0.02)
        for lr in lrs
    ]
    curve = Curve(lrs, falling_twice, GUESSING)
    assert curve.diverged()
    for found in (curve.valley(), curve.steepest()):
        assert 0.03 < found < 0.25, "on the falling side of the first valley"


@pytest.mark.parametrize("low", [1e-6, 1e-5, 1e-4])
def test_the_valley_hardly_depends_on_the_lowest_rate(low: float) -> None:
    lrs = list(rates(low, 1.0, 100))
    losses = [2.29 - 0.01 * math.log10(lr / low) - 1.9 / (1 + math.exp(-4 * math.log10(lr / 5e-3))) for lr in lrs]
    assert 3e-3 < Curve(lrs, losses, GUESSING).valley() < 0.1


def test_seeds_are_averaged_up_to_the_first_divergence() -> None:
    one, two = falling(1e-3), falling(2e-3)
    short = Curve(two.lrs[:100], two.losses[:100], GUESSING)
    mean = mean_curve([one, short])
    assert mean.lrs == one.lrs[:100]
    assert mean.losses == pytest.approx([(a + b) / 2 for a, b in zip(one.losses, short.losses, strict=False)])


def test_a_loss_that_is_lowest_at_the_end_still_falls() -> None:
    curve = falling(1e-3)
    assert not curve.still_falls()
    assert Curve(curve.lrs[:70], curve.losses[:70], GUESSING).still_falls()


@pytest.mark.parametrize("last", [2.2, 2.4, 5.0])
def test_a_loss_that_hardly_falls_below_guessing_is_refused(last: float) -> None:
    curve = Curve(list(rates(1e-3, 1.0, 30)), np.linspace(4, last, 30).tolist(), GUESSING)
    for suggest in (curve.steepest, curve.valley):
        with pytest.raises(UserError, match=r"in 30 steps the loss did not fall below that of guessing, 2\.30, by 5 %"):
            suggest()


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ([], None),
        ([2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.2, 1.1], None),
        ([2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.2, 1.1, 1.0], 6),
        ([3.0] * 9 + [1.0], None),
        ([3.0] * 8 + [1.5, 1.0], 8),
    ],
    ids=["none", "nine", "ten", "one below guessing", "two below guessing"],
)
def test_a_suggestion_takes_ten_steps_and_two_below_guessing(losses: list[float], rate: int | None) -> None:
    lrs = [10.0 ** (step - 10) for step in range(len(losses))]
    if rate is None:
        with pytest.raises(UserError, match=rf"^in {len(losses)} steps the loss did not fall below that of guessing"):
            Curve(lrs, losses, GUESSING).steepest()
    else:
        assert lrs.index(Curve(lrs, losses, GUESSING).steepest()) == rate


def test_falling_to_the_loss_of_guessing_suggests_no_rate() -> None:
    """A network that is overconfident at first gets the same suggestions as one that is not."""
    calm = falling(3e-3)
    early = [loss + 3 / (1 + (lr / 1e-5) ** 2) for lr, loss in zip(calm.lrs, calm.losses, strict=True)]
    hasty = Curve(calm.lrs, early, GUESSING)
    assert hasty.steepest() == calm.steepest()
    assert abs(math.log10(hasty.valley() / calm.valley())) < 0.35


def test_a_curve_is_saved_and_read_again(tmp_path: Path) -> None:
    curve = falling(1e-3)
    curve.save(tmp_path / "curve.json", {}, "")
    assert Curve.load(tmp_path / "curve.json") == curve


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[1]", '{"lrs": [1], "losses": [1]}'),
        '{"lrs": [1], "losses": [], "guessing": 2}',
        '{"lrs": [], "losses": [], "guessing": 2}',
        '{"lrs": [null], "losses": [null], "guessing": 2}',
        '{"lrs": [1], "losses": [1], "guessing": null}',
        '{"lrs": [1], "losses": [NaN], "guessing": 2}',
        '{"lrs": [0], "losses": [1], "guessing": 2}',
    ],
)
def test_a_damaged_curve_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "curve.json").write_text(text)
    assert Curve.load(tmp_path / "curve.json") is None
    assert Curve.load(tmp_path / "missing.json") is None


def test_a_curve_of_other_settings_or_data_says_so(tmp_path: Path) -> None:
    """A run may begin, with others, in the folder of a range test."""
    config = Config(model=ModelConfig("speed-net", {"widths": [8, 8, 8]}))
    path = tmp_path / "lr_curve.json"
    Curve([0.1, 0.2], [1.0, 0.9], 2.3).save(path, settings_of(config), "0123abcd")
    assert Curve.load(path) == Curve([0.1, 0.2], [1.0, 0.9], 2.3)

    def of(run: Config, fingerprint: str = "0123abcd") -> str:
        return difference(path, settings_of(run), fingerprint)

    same = replace(config, train=TrainConfig(epochs=3), optim=replace(config.optim, lr=0.7), eval=EvalConfig(tta="0"))
    assert of(config) == of(same) == of(config, "") == ""
    batch = replace(config, train=TrainConfig(batch_size=64))
    assert of(batch) == "train.batch_size = 512 and this run says 64"
    assert of(config, "4567cdef") == "other data (0123abcd, and this run's is 4567cdef)"
    for text in ('{"lrs": [0.1], "losses": [1], "guessing": 2}', "[]", '{"settings": 1, "fingerprint": []}', "junk"):
        path.write_text(text)  # of an earlier version, or damaged
        assert of(batch, "4567cdef") == ""
