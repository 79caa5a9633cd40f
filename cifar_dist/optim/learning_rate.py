"""The learning rate as a pure function of the step: no state to save or update, the same on any world size."""

from __future__ import annotations

from cifar_dist.config import ScheduleConfig
from cifar_dist.errors import UserError


def learning_rate(schedule: ScheduleConfig, lr: float, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of optimizer step ``step``, counted from 0 over the entire run.

    The warm-up ends after exactly ``warmup`` epochs, between two steps if necessary. ``final`` belongs to the step
    after the last one, so that ``final = 0`` wastes no step; later steps have it too.

    Args:
        lr: the peak.
        steps_per_epoch: optimizer steps in one epoch.
        epochs: length of the run.

    Returns:
        A learning rate in [0, ``lr``].

    Raises:
        UserError: a plug-in's fraction is something else.
    """
    step = min(step, steps_per_epoch * epochs)
    fraction: object = schedule.fraction(step, steps_per_epoch=steps_per_epoch, epochs=epochs)
    if not (isinstance(fraction, int | float) and 0 <= fraction <= 1):
        raise UserError(
            f"schedule.name {schedule.name}: the rate of step {step} is {fraction!r:.40} of lr, not a number in [0, 1]"
        )
    return lr * fraction
