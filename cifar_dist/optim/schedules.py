"""The learning rate as a pure function of the step: nothing to save, nothing to step, the same on any world size."""

from __future__ import annotations

from cifar_dist.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, lr: float, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of optimizer step ``step``, counted from 0 over the whole run.

    The warm-up ends at ``warmup`` epochs exactly, between two steps if need be. ``final`` belongs to the step after
    the last one, so that with ``final = 0`` no step is wasted; steps beyond have it too.

    Args:
        lr: the peak.
        steps_per_epoch: optimizer steps in one epoch.
        epochs: length of the run.

    Returns:
        a learning rate in [0, ``lr``].
    """
    step = min(step, steps_per_epoch * epochs)
    return lr * schedule.fraction(step, steps_per_epoch=steps_per_epoch, epochs=epochs)
