"""The learning rate as a pure function of the step: nothing to save, nothing to step, the same on any world size."""

from __future__ import annotations

import math

from cifar_dist.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, lr: float, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of optimizer step ``step``, counted from 0 over the whole run.

    The warm-up ends at ``warmup`` epochs exactly, between two steps if need be. ``final`` belongs to the step after
    the last one, so that with ``final = 0`` no step is wasted; steps beyond have it too. The cosine is that of
    Loshchilov, Hutter: *SGDR*, arXiv:1608.03983; onecycle is Smith, Topin: *Super-Convergence*, arXiv:1708.07120.

    Args:
        lr: the peak.
        steps_per_epoch: optimizer steps in one epoch.
        epochs: length of the run.

    Returns:
        a learning rate in [0, ``lr``].
    """
    total = steps_per_epoch * epochs
    warmup = schedule.warmup * steps_per_epoch
    step = min(step, total)
    if step < warmup:
        cosine = schedule.name == "onecycle" and schedule.shape == "cosine"
        return lr * _between(schedule.start, 1.0, step / warmup, cosine=cosine)
    if schedule.name == "constant":
        return lr
    if schedule.name == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
        return lr * schedule.gamma**passed
    progress = (step - warmup) / (total - warmup) if total > warmup else 0.0
    cosine = schedule.name == "cosine" or schedule.shape == "cosine"
    return lr * _between(1.0, schedule.final, progress, cosine=cosine)


def _between(first: float, last: float, progress: float, *, cosine: bool) -> float:
    """From ``first`` at progress 0 to ``last`` at 1, on a line or on half a cosine; never outside the two."""
    if cosine:
        progress = (1 - math.cos(math.pi * progress)) / 2
    # Of the forms of interpolation, the one that meets both ends exactly; rounding may still pass one by an ulp.
    value = first * (1 - progress) + last * progress
    return min(max(value, min(first, last)), max(first, last))
