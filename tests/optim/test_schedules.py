"""The learning rate against torch's schedulers, and the invariants of all schedules."""

from __future__ import annotations

import dataclasses
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from cifar_dist import recipe
from cifar_dist.config import ScheduleConfig
from cifar_dist.config.average import EMAConfig
from cifar_dist.config.schedule import RestartsConfig, StepConfig, TriangularConfig, WSDConfig
from cifar_dist.errors import UserError
from cifar_dist.optim.learning_rate import learning_rate

LR = 0.4
EPOCHS = 8
STEPS = 10  # per epoch
TOTAL = EPOCHS * STEPS


def schedule_of(name: str, **settings: object) -> ScheduleConfig:
    """Build a schedule as a recipe does, from the ``settings`` that it has."""
    variant = ScheduleConfig.variants[name]
    known = {field.name for field in dataclasses.fields(variant)}
    return variant(**{key: value for key, value in settings.items() if key in known})  # type: ignore[arg-type]


def ours(schedule: ScheduleConfig, steps: int = TOTAL + 1) -> list[float]:
    return [learning_rate(schedule, LR, step, steps_per_epoch=STEPS, epochs=EPOCHS) for step in range(steps)]


def optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)


def torchs(scheduler: lr_scheduler.LRScheduler, steps: int = TOTAL + 1) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(float(scheduler.get_last_lr()[0]))
        scheduler.optimizer.step()
        if len(rates) < steps:
            scheduler.step()
    return rates


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [1, 2, 2.4])
def test_onecycle_is_torchs_one_cycle(shape: str, warmup: float, three_phase: bool) -> None:
    schedule = schedule_of("onecycle", three_phase=three_phase, shape=shape, warmup=warmup, start=0.04, final=0.001)
    reference = lr_scheduler.OneCycleLR(
        optimizer(),
        max_lr=LR,
        total_steps=TOTAL + 1,  # torch's last step has the final LR; here it belongs to the step after
        pct_start=(warmup * STEPS + 1) / (TOTAL + 1),
        anneal_strategy={"linear": "linear", "cosine": "cos"}[shape],  # type: ignore[arg-type]
        div_factor=1 / 0.04,
        final_div_factor=0.04 / 0.001,
        three_phase=three_phase,
        cycle_momentum=False,
    )
    assert ours(schedule) == pytest.approx(torchs(reference), rel=1e-9)


def test_cosine_is_torchs_cosine_annealing() -> None:
    reference = lr_scheduler.CosineAnnealingLR(optimizer(), T_max=TOTAL, eta_min=0.01 * LR)
    assert ours(schedule_of("cosine", final=0.01)) == pytest.approx(torchs(reference), rel=1e-9)


def test_cosine_warms_up_on_a_line() -> None:
    opt = optimizer()
    reference = lr_scheduler.SequentialLR(
        opt,
        [
            lr_scheduler.LinearLR(opt, start_factor=0.25, total_iters=20),
            lr_scheduler.CosineAnnealingLR(opt, T_max=TOTAL - 20),
        ],
        milestones=[20],
    )
    schedule = schedule_of("cosine", warmup=2, start=0.25)
    assert ours(schedule) == pytest.approx(torchs(reference), rel=1e-9, abs=1e-15)


def test_step_is_torchs_multi_step() -> None:
    reference = lr_scheduler.MultiStepLR(optimizer(), milestones=[25, 60], gamma=0.2)
    schedule = schedule_of("step", milestones=(2.5, 6), gamma=0.2)
    assert ours(schedule) == pytest.approx(torchs(reference), rel=1e-12)


@pytest.mark.parametrize("epochs", [tenth / 10 for tenth in range(1, 50)])
@pytest.mark.parametrize("per_epoch", [10, 50, 390])
def test_a_setting_in_epochs_takes_effect_at_the_step_that_it_names(epochs: float, per_epoch: int) -> None:
    """Though 1.1 * 50 is 55.00000000000001: a fraction of a step later would be a step later."""
    step = round(epochs * 10) * per_epoch // 10

    def rate(name: str, at: int, **settings: object) -> float:
        return schedule_of(name, **settings).fraction(at, steps_per_epoch=per_epoch, epochs=20)

    assert [rate("step", at, milestones=(epochs,)) for at in (step - 1, step)] == [1.0, 0.1]
    assert rate("restarts", step, cycle=epochs) == 1.0
    assert rate("triangular", step, cycle=epochs, warmup=epochs / 2, start=0.1) == 0.1
    assert rate("constant", step, warmup=epochs, start=0.1) == 1.0
    assert EMAConfig(start=epochs).first_step(per_epoch) == step


def test_constant_stays_after_its_warm_up() -> None:
    assert ours(schedule_of("constant", start=0.5)) == [LR] * (TOTAL + 1)
    rates = ours(schedule_of("constant", warmup=1, start=0.5))
    assert rates[0] == LR / 2
    assert rates[5] == pytest.approx(LR * 0.75)
    assert rates[STEPS:] == [LR] * (TOTAL + 1 - STEPS)


def test_three_phases_without_a_warm_up_are_one() -> None:
    assert ours(schedule_of("onecycle", three_phase=True)) == ours(schedule_of("onecycle"))


@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_polynomial_is_torchs_and_linear_is_its_first_power(power: float) -> None:
    reference = lr_scheduler.PolynomialLR(optimizer(), total_iters=TOTAL, power=power)
    expected = torchs(reference)
    assert ours(schedule_of("polynomial", power=power)) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    if power == 1:
        assert ours(schedule_of("linear")) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_linear_ends_at_final_like_torchs() -> None:
    reference = lr_scheduler.LinearLR(optimizer(), start_factor=1.0, end_factor=0.1, total_iters=TOTAL)
    assert ours(schedule_of("linear", final=0.1)) == pytest.approx(torchs(reference), rel=1e-9)


@pytest.mark.parametrize("growth", [1, 2])
def test_restarts_are_torchs_warm_restarts(growth: int) -> None:
    reference = lr_scheduler.CosineAnnealingWarmRestarts(optimizer(), T_0=STEPS, T_mult=growth, eta_min=0.01 * LR)
    schedule = schedule_of("restarts", cycle=1, growth=growth, final=0.01)
    assert ours(schedule) == pytest.approx(torchs(reference), rel=1e-9)


def test_restarts_count_from_the_end_of_the_warm_up() -> None:
    rates = ours(schedule_of("restarts", cycle=2, growth=1.5, warmup=1, start=0.1))
    peaks = [step for step in range(1, TOTAL) if rates[step] == LR]
    assert peaks == [10, 30, 60]
    assert ours(schedule_of("restarts", warmup=1)) == [*ours(schedule_of("cosine", warmup=1))[:-1], LR]


@pytest.mark.parametrize(("up", "length"), [(2, 4), (0.5, 2), (1, 3)])
def test_triangular_is_torchs_cyclic(up: float, length: float) -> None:
    reference = lr_scheduler.CyclicLR(
        optimizer(),
        base_lr=0.1 * LR,
        max_lr=LR,
        step_size_up=int(up * STEPS),
        step_size_down=int((length - up) * STEPS),
        mode="triangular",
        cycle_momentum=False,
    )
    schedule = schedule_of("triangular", warmup=up, cycle=length, start=0.1)
    assert ours(schedule) == pytest.approx(torchs(reference), rel=1e-9)


def test_triangular_is_one_triangle_by_default() -> None:
    rates = ours(schedule_of("triangular", warmup=2, start=0.1))
    assert rates == pytest.approx(ours(schedule_of("onecycle", warmup=2, start=0.1, final=0.1)), rel=1e-12)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_wsd_warms_up_stays_and_decays(shape: str) -> None:
    opt = optimizer()
    last = (
        lr_scheduler.LinearLR(opt, start_factor=1.0, end_factor=0.1, total_iters=20)
        if shape == "linear"
        else lr_scheduler.CosineAnnealingLR(opt, T_max=20, eta_min=0.1 * LR)
    )
    phases = [
        lr_scheduler.LinearLR(opt, start_factor=0.25, total_iters=10),
        lr_scheduler.ConstantLR(opt, factor=1.0),
        last,
    ]
    reference = lr_scheduler.SequentialLR(opt, phases, milestones=[10, 60])
    schedule = schedule_of("wsd", warmup=1, start=0.25, decay=2, final=0.1, shape=shape)
    assert ours(schedule) == pytest.approx(torchs(reference), rel=1e-9)


@pytest.mark.parametrize("name", ["constant", "onecycle", "cosine", "linear", "polynomial", "restarts", "step", "wsd"])
def test_a_warm_up_longer_than_a_share_of_the_run_shrinks_with_it(name: str) -> None:
    falls = {"milestones": (5,), "decay": 2}  # of those that know them
    long, fitting = (schedule_of(name, warmup=warmup, start=0.1, **falls) for warmup in (EPOCHS, 0.3 * EPOCHS))
    assert ours(long) == ours(fitting)
    assert long.cut_short(EPOCHS) == ["warm-up: 2.4 epochs instead of 8, 30 % of train.epochs 8"]
    assert fitting.cut_short(EPOCHS) == []


def test_the_rise_of_a_triangle_is_half_of_it_at_most() -> None:
    whole = schedule_of("triangular", warmup=6, start=0.1)
    assert ours(whole) == ours(schedule_of("triangular", warmup=4, start=0.1))
    sawtooth = schedule_of("triangular", warmup=6, cycle=8, start=0.1)
    assert ours(sawtooth)[60] == LR
    assert sawtooth.cut_short(EPOCHS) == []


@pytest.mark.parametrize(
    ("schedule", "at_8", "at_9"),
    [
        (
            StepConfig(milestones=(2, 8, 9)),
            "schedule.milestones: no effect of 8, 9, the run ends after",
            "no effect of 9",
        ),
        (
            WSDConfig(warmup=1, decay=8),
            "schedule.decay: 7 epochs instead of 8, those that train.epochs 8 leaves",
            "",
        ),
        (RestartsConfig(warmup=1, cycle=8), "schedule.cycle: 7 epochs of 8, those that train.epochs 8 leaves", ""),
        (TriangularConfig(warmup=1, cycle=9), "schedule.cycle: 8 epochs of 9, those that train.epochs 8 leaves", ""),
    ],
)
def test_what_a_short_run_has_no_room_for_is_said(schedule: ScheduleConfig, at_8: str, at_9: str) -> None:
    for epochs, says in ((8, at_8), (9, at_9)):
        (line,) = schedule.cut_short(epochs) or [""]
        assert says in line
        assert bool(says) == bool(line)
    assert schedule.cut_short(10) == []


def test_a_warm_up_and_what_follows_it_may_fill_a_run_exactly() -> None:
    """In hundredths of an epoch, whose products and differences are rounded: 0.3 * 3 is less than 0.9."""
    for epochs in range(1, 21):
        for hundredths in range(30 * epochs + 1):
            warmup, left = hundredths / 100, (100 * epochs - hundredths) / 100
            for schedule in (WSDConfig(warmup=warmup, decay=left), RestartsConfig(warmup=warmup, cycle=left)):
                assert schedule.cut_short(epochs) == []
                assert schedule.warmup_of(epochs) == warmup


def test_a_milestone_is_an_epoch_of_the_run_and_not_of_what_follows_the_warm_up() -> None:
    schedule = StepConfig(warmup=2, milestones=(3,), gamma=0.1)
    rates = [schedule.fraction(step, steps_per_epoch=STEPS, epochs=EPOCHS) for step in (3 * STEPS - 1, 3 * STEPS)]
    assert rates == [1, 0.1]


@pytest.mark.parametrize(("schedule", "key"), [(StepConfig(warmup=1), "milestones"), (WSDConfig(warmup=1), "decay")])
def test_a_schedule_that_never_falls_says_so(schedule: ScheduleConfig, key: str) -> None:
    (line,) = schedule.cut_short(8)
    assert re.fullmatch(rf"schedule\.{key}: (none|0 epochs), so that the learning rate never falls", line)


def test_no_shipped_recipe_is_cut_short_at_its_own_length() -> None:
    for name in recipe.shipped():
        config = recipe.load(name)
        assert config.schedule.cut_short(config.train.epochs) == [], name


def test_wsd_without_steps_to_stay_only_decays() -> None:
    schedule = schedule_of("wsd", warmup=2, decay=50)
    assert ours(schedule) == pytest.approx(ours(schedule_of("onecycle", warmup=2)), rel=1e-9, abs=1e-15)
    assert ours(schedule_of("wsd")) == [LR] * (TOTAL + 1)


smooth = st.builds(
    schedule_of,
    name=st.sampled_from(["constant", "onecycle", "cosine"]),
    warmup=st.floats(0, 50),
    start=st.floats(0, 1),
    final=st.floats(0, 1),
    shape=st.sampled_from(["linear", "cosine"]),
)
schedules = smooth | st.builds(
    schedule_of,
    name=st.just("step"),
    warmup=st.floats(0, 50),
    start=st.floats(0, 1),
    milestones=st.sets(st.floats(0, 60, exclude_min=True)).map(lambda m: tuple(sorted(m))),
    gamma=st.floats(0, 1, exclude_min=True),
)


def newer_schedule(name: str, warmup: float, cycle: float, **settings: object) -> ScheduleConfig:
    """Build one of the newer schedules; the rise of a triangle is limited to its length."""
    rise = min(warmup, cycle) if name == "triangular" and cycle else warmup
    return schedule_of(name, warmup=rise, cycle=cycle, **settings)


newer = st.builds(
    newer_schedule,
    name=st.sampled_from(["linear", "polynomial", "restarts", "triangular", "wsd", "onecycle"]),
    warmup=st.floats(0, 50),
    start=st.floats(0, 1),
    final=st.floats(0, 1),
    shape=st.sampled_from(["linear", "cosine"]),
    three_phase=st.booleans(),
    power=st.floats(0.1, 10),
    cycle=st.just(0.0) | st.floats(0.1, 60),
    growth=st.just(1.0) | st.floats(1.1, 4),
    decay=st.floats(0, 60),
)


@settings(deadline=None)
@given(schedules | newer, st.floats(1e-9, 1e3), st.integers(0, 10**6), st.integers(1, 1000), st.integers(1, 50))
def test_a_rate_is_never_negative_or_above_the_peak_and_constant_after_the_end(
    schedule: ScheduleConfig, lr: float, step: int, steps_per_epoch: int, epochs: int
) -> None:
    rate = learning_rate(schedule, lr, step, steps_per_epoch=steps_per_epoch, epochs=epochs)
    assert 0 <= rate <= lr
    total = steps_per_epoch * epochs
    if step >= total:
        assert rate == learning_rate(schedule, lr, total, steps_per_epoch=steps_per_epoch, epochs=epochs)


@settings(deadline=None)
@given(smooth, st.integers(1, 40), st.integers(1, 10))
@example(schedule_of("onecycle", warmup=10), 4, 10)  # as long as the run
def test_neighbouring_steps_have_similar_rates_and_the_peak_is_reached(
    schedule: ScheduleConfig, steps_per_epoch: int, epochs: int
) -> None:
    """Only the step schedule jumps; no other phase is steeper than half a cosine of its length."""
    total = steps_per_epoch * epochs
    warmup = schedule.warmup_of(epochs) * steps_per_epoch
    rates = [learning_rate(schedule, 1.0, s, steps_per_epoch=steps_per_epoch, epochs=epochs) for s in range(total + 1)]
    slopes = [math.pi / 2 / length for length in (warmup, total - warmup) if length > 0]
    assert all(abs(b - a) <= sum(slopes) + 1e-12 for a, b in pairwise(rates))
    if warmup == int(warmup):
        assert rates[int(warmup)] == 1.0


@settings(deadline=None)
@given(schedules, st.integers(1, 100), st.integers(1, 20))
def test_the_warm_up_starts_at_start(schedule: ScheduleConfig, steps_per_epoch: int, epochs: int) -> None:
    assume(schedule.warmup > 0)
    first = learning_rate(schedule, 1.0, 0, steps_per_epoch=steps_per_epoch, epochs=epochs)
    assert first == pytest.approx(schedule.start)


PLUG_IN = """
from dataclasses import dataclass
import torch
from cifar_dist.config import ScheduleConfig

@dataclass(frozen=True)
class Misspelt(ScheduleConfig):
    def faling(self, at):
        return 0.5

@dataclass(frozen=True)
class Negative(ScheduleConfig):
    def falling(self, at):
        return -1.0

@dataclass(frozen=True)
class Above(ScheduleConfig):
    def falling(self, at):
        return 1.5

@dataclass(frozen=True)
class Nothing(ScheduleConfig):
    def falling(self, at):
        pass

@dataclass(frozen=True)
class Scalar(ScheduleConfig):
    def falling(self, at):
        return torch.tensor(0.5)
"""


def test_a_plug_in_that_gives_no_rate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUG_IN)
    with pytest.raises(UserError, match=r"Misspelt does not define falling\(\) or fraction\(\)"):
        recipe.load("demo", ["--schedule.name", f"{tmp_path}/mine.py:Misspelt"])
    cases = (("Negative", "-1.0"), ("Above", "1.5"), ("Nothing", "None"), ("Scalar", r"tensor\(0\.5000\)"))
    for name, fraction in cases:
        words = ["--schedule.name", f"{tmp_path}/mine.py:{name}", "--schedule.warmup", "0"]
        schedule = recipe.load("demo", words).schedule
        with pytest.raises(
            UserError, match=rf"mine\.py:{name}: the rate of step 3 is {fraction} of lr, not a number in \[0, 1\]"
        ):
            learning_rate(schedule, LR, 3, steps_per_epoch=STEPS, epochs=EPOCHS)
