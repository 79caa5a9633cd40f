"""The learning rate against torch's schedulers, and what holds for all schedules."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from cifar_dist.config import ScheduleConfig
from cifar_dist.optim import learning_rate

LR = 0.4
EPOCHS = 8
STEPS = 10  # per epoch
TOTAL = EPOCHS * STEPS


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


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [2, 2.5, 7.9])
def test_onecycle_is_torchs_one_cycle(shape: str, warmup: float) -> None:
    schedule = ScheduleConfig(name="onecycle", shape=shape, warmup=warmup, start=0.04, final=0.001)  # type: ignore[arg-type]
    reference = lr_scheduler.OneCycleLR(
        optimizer(),
        max_lr=LR,
        total_steps=TOTAL + 1,  # torch's last step has the final LR; here it belongs to the step after
        pct_start=(warmup * STEPS + 1) / (TOTAL + 1),
        anneal_strategy={"linear": "linear", "cosine": "cos"}[shape],  # type: ignore[arg-type]
        div_factor=1 / 0.04,
        final_div_factor=0.04 / 0.001,
        three_phase=False,
        cycle_momentum=False,
    )
    assert ours(schedule) == pytest.approx(torchs(reference), rel=1e-9)


def test_cosine_is_torchs_cosine_annealing() -> None:
    reference = lr_scheduler.CosineAnnealingLR(optimizer(), T_max=TOTAL, eta_min=0.01 * LR)
    assert ours(ScheduleConfig(name="cosine", final=0.01)) == pytest.approx(torchs(reference), rel=1e-9)


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
    schedule = ScheduleConfig(name="cosine", warmup=2, start=0.25)
    assert ours(schedule) == pytest.approx(torchs(reference), rel=1e-9, abs=1e-15)


def test_step_is_torchs_multi_step() -> None:
    reference = lr_scheduler.MultiStepLR(optimizer(), milestones=[25, 60], gamma=0.2)
    schedule = ScheduleConfig(name="step", milestones=(2.5, 6), gamma=0.2)
    assert ours(schedule) == pytest.approx(torchs(reference), rel=1e-12)


def test_constant_stays_after_its_warm_up() -> None:
    assert ours(ScheduleConfig(name="constant", start=0.5)) == [LR] * (TOTAL + 1)
    rates = ours(ScheduleConfig(name="constant", warmup=1, start=0.5))
    assert rates[0] == LR / 2
    assert rates[5] == pytest.approx(LR * 0.75)
    assert rates[STEPS:] == [LR] * (TOTAL + 1 - STEPS)


schedules = st.builds(
    ScheduleConfig,
    name=st.sampled_from(["constant", "onecycle", "cosine"]),
    warmup=st.floats(0, 50),
    start=st.floats(0, 1),
    final=st.floats(0, 1),
    shape=st.sampled_from(["linear", "cosine"]),
) | st.builds(
    ScheduleConfig,
    name=st.just("step"),
    warmup=st.floats(0, 50),
    start=st.floats(0, 1),
    milestones=st.sets(st.floats(0, 60)).map(lambda m: tuple(sorted(m))),
    gamma=st.floats(0, 1),
)


@settings(deadline=None)
@given(schedules, st.floats(1e-9, 1e3), st.integers(0, 10**6), st.integers(1, 1000), st.integers(1, 50))
def test_never_negative_never_above_the_peak_and_still_after_the_end(
    schedule: ScheduleConfig, lr: float, step: int, steps_per_epoch: int, epochs: int
) -> None:
    assume(schedule.warmup <= epochs)
    rate = learning_rate(schedule, lr, step, steps_per_epoch=steps_per_epoch, epochs=epochs)
    assert 0 <= rate <= lr
    total = steps_per_epoch * epochs
    if step >= total:
        assert rate == learning_rate(schedule, lr, total, steps_per_epoch=steps_per_epoch, epochs=epochs)


@settings(deadline=None)
@given(schedules, st.integers(1, 40), st.integers(1, 10))
@example(ScheduleConfig(name="onecycle", warmup=10), 4, 10)  # no room to fall
def test_neighbouring_steps_are_near_and_the_peak_is_reached(
    schedule: ScheduleConfig, steps_per_epoch: int, epochs: int
) -> None:
    """No jump but a step schedule's: neither phase is steeper than half a cosine of its length."""
    assume(schedule.warmup <= epochs and not schedule.milestones)
    total = steps_per_epoch * epochs
    warmup = schedule.warmup * steps_per_epoch
    rates = [learning_rate(schedule, 1.0, s, steps_per_epoch=steps_per_epoch, epochs=epochs) for s in range(total + 1)]
    slopes = [math.pi / 2 / length for length in (warmup, total - warmup) if length > 0]
    assert all(abs(b - a) <= sum(slopes) + 1e-12 for a, b in pairwise(rates))
    if warmup == int(warmup):
        assert rates[int(warmup)] == 1.0


@settings(deadline=None)
@given(schedules, st.integers(1, 100), st.integers(1, 20))
def test_the_warm_up_starts_where_it_was_told(schedule: ScheduleConfig, steps_per_epoch: int, epochs: int) -> None:
    assume(0 < schedule.warmup <= epochs)
    first = learning_rate(schedule, 1.0, 0, steps_per_epoch=steps_per_epoch, epochs=epochs)
    assert first == pytest.approx(schedule.start)
