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
    name: str = schedule.name
    total = steps_per_epoch * epochs
    warmup = schedule.warmup * steps_per_epoch
    step = min(step, total)
    if name == "triangular":
        return lr * _triangle(schedule, step, warmup, _cycle(schedule, steps_per_epoch) or total)
    if step < warmup:
        cosine = name == "onecycle" and schedule.shape == "cosine"
        return lr * _between(schedule.start, 1.0, step / warmup, cosine=cosine)
    if name == "constant":
        return lr
    if name == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
        return lr * schedule.gamma**passed
    if name == "restarts":
        length = _cycle(schedule, steps_per_epoch) or total - warmup
        progress = _since_restart(step - warmup, length, growth=_setting(schedule, "growth", 1.0))
        return lr * _between(1.0, schedule.final, progress, cosine=True)
    top, begin = 1.0, warmup  # where the last descent starts: from which fraction of the peak, at which step
    if name == "wsd":
        begin = max(warmup, total - _setting(schedule, "decay", 0.0) * steps_per_epoch)
    elif name == "onecycle" and _setting(schedule, "three_phase", False):
        if step < 2 * warmup:
            cosine = schedule.shape == "cosine"
            return lr * _between(1.0, schedule.start, (step - warmup) / warmup, cosine=cosine)
        if warmup:
            top, begin = schedule.start, 2 * warmup
    progress = max(0.0, step - begin) / (total - begin) if total > begin else 0.0
    if name in ("linear", "polynomial"):
        power = 1.0 if name == "linear" else _setting(schedule, "power", 1.0)
        return lr * _between(top, schedule.final, 1 - (1 - progress) ** power, cosine=False)
    return lr * _between(top, schedule.final, progress, cosine=name == "cosine" or schedule.shape == "cosine")


def _triangle(schedule: ScheduleConfig, step: int, rise: float, length: float) -> float:
    """Up from ``start`` in ``rise`` steps and back to it in the rest of each cycle."""
    position = step % length
    if position < rise:
        return _between(schedule.start, 1.0, position / rise, cosine=False)
    return _between(1.0, schedule.start, (position - rise) / (length - rise), cosine=False) if length > rise else 1.0


def _since_restart(steps: float, length: float, *, growth: float) -> float:
    """Progress in [0, 1) of the cycle that ``steps`` falls in; each is ``growth`` times as long as the one before."""
    if growth == 1.0:
        return steps % length / length if length else 0.0
    while steps >= length > 0:
        steps, length = steps - length, length * growth
    return steps / length if length else 0.0


def _between(first: float, last: float, progress: float, *, cosine: bool) -> float:
    """From ``first`` at progress 0 to ``last`` at 1, on a line or on half a cosine; never outside the two."""
    if cosine:
        progress = (1 - math.cos(math.pi * progress)) / 2
    # Of the forms of interpolation, the one that meets both ends exactly; rounding may still pass one by an ulp.
    value = first * (1 - progress) + last * progress
    return min(max(value, min(first, last)), max(first, last))


def _cycle(schedule: ScheduleConfig, steps_per_epoch: int) -> float:
    return _setting(schedule, "cycle", 0.0) * steps_per_epoch


def _setting(schedule: ScheduleConfig, name: str, default: float) -> float:
    """A field that ScheduleConfig is about to get."""
    return float(getattr(schedule, name, default))
