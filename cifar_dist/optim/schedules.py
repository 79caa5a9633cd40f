"""The learning rate as a pure function of the step: nothing to save, nothing to step, the same on any world size."""

from __future__ import annotations

import math

from cifar_dist.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, lr: float, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of optimizer step ``step``, counted from 0 over the whole run.

    The warm-up ends at ``warmup`` epochs exactly, between two steps if need be. ``final`` belongs to the step after
    the last one, so that with ``final = 0`` no step is wasted; steps beyond have it too.

    Sources: onecycle, Smith, Topin: *Super-Convergence*, arXiv:1708.07120; cosine and restarts, Loshchilov, Hutter:
    *SGDR*, arXiv:1608.03983; triangular, Smith: *Cyclical Learning Rates*, arXiv:1506.01186; wsd (warm-up, stable,
    decay), Hu et al.: *MiniCPM*, arXiv:2404.06395.

    Args:
        lr: the peak.
        steps_per_epoch: optimizer steps in one epoch.
        epochs: length of the run.

    Returns:
        a learning rate in [0, ``lr``].
    """
    name = schedule.name
    total = steps_per_epoch * epochs
    warmup = schedule.warmup * steps_per_epoch
    cycle = schedule.cycle * steps_per_epoch
    step = min(step, total)
    if name == "triangular":
        return lr * _triangle(schedule.start, step % (cycle or total), warmup, cycle or total)
    if step < warmup:
        cosine = name == "onecycle" and schedule.shape == "cosine"
        return lr * _between(schedule.start, 1.0, step / warmup, cosine=cosine)
    since, left = step - warmup, total - warmup  # since the peak; from the peak to the end
    cosine = name in ("cosine", "restarts") or schedule.shape == "cosine"
    match name:
        case "constant":
            return lr
        case "step":
            passed = sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
            return lr * schedule.gamma**passed
        case "linear" | "polynomial":
            power = 1.0 if name == "linear" else schedule.power
            return lr * _between(schedule.final, 1.0, math.pow(1 - _share(since, left), power), cosine=False)
        case "wsd":
            decay = min(left, schedule.decay * steps_per_epoch)
            return lr * _between(1.0, schedule.final, _share(since - (left - decay), decay), cosine=cosine)
        case "restarts":
            progress = _since_restart(since, cycle or left, growth=schedule.growth)
            return lr * _between(1.0, schedule.final, progress, cosine=cosine)
        case "onecycle" if warmup and schedule.three_phase:
            if since < warmup:
                return lr * _between(1.0, schedule.start, since / warmup, cosine=cosine)
            progress = _share(since - warmup, left - warmup)
            return lr * _between(schedule.start, schedule.final, progress, cosine=cosine)
    return lr * _between(1.0, schedule.final, _share(since, left), cosine=cosine)


def _triangle(start: float, step: float, rise: float, length: float) -> float:
    """From ``start`` to 1 in ``rise`` steps and back in the rest of ``length``."""
    if step < rise:
        return _between(start, 1.0, step / rise, cosine=False)
    return _between(1.0, start, _share(step - rise, length - rise), cosine=False)


def _since_restart(steps: float, length: float, *, growth: float) -> float:
    """Progress in [0, 1) of the cycle that ``steps`` falls in; each is ``growth`` times as long as the one before."""
    if growth == 1.0:
        return _share(steps % length, length) if length else 0.0
    while steps >= length > 0:
        steps, length = steps - length, length * growth
    return _share(steps, length)


def _share(steps: float, length: float) -> float:
    """Progress in [0, 1] of a phase of ``length`` steps; one without length has none."""
    return min(1.0, max(0.0, steps) / length) if length > 0 else 0.0


def _between(first: float, last: float, progress: float, *, cosine: bool) -> float:
    """From ``first`` at progress 0 to ``last`` at 1, on a line or on half a cosine; never outside the two."""
    if cosine:
        progress = (1 - math.cos(math.pi * progress)) / 2
    # Of the forms of interpolation, the one that meets both ends exactly; rounding may still pass one by an ulp.
    value = first * (1 - progress) + last * progress
    return min(max(value, min(first, last)), max(first, last))
