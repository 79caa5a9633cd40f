"""The learning-rate range test of a recipe: its own step on its own batches, on as many processes as were launched.

A test starts from new weights and throws them away: it reads and writes no checkpoint, so a run that exists goes on
as if nothing had been. Only its curve is kept, in the run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from cifar_dist.config import Config
from cifar_dist.distributed.agreement import Agreement
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.errors import UserError
from cifar_dist.optim.lr_curve import Curve, rates
from cifar_dist.run_folder import RunFolder
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepMeter


def lr_find(
    config: Config,
    engine: Engine,
    signals: StopSignals,
    *,
    low: float,
    high: float,
    steps: int,
    show: Callable[[int, float, float], None] = lambda step, lr, loss: None,
) -> Curve:
    """Train ``steps`` steps from new weights, at rates from ``low`` to ``high``, until the loss diverges. Collective.

    Args:
        config: the recipe; its schedule is not followed.
        engine: this process's place in the job.
        signals: asked at every step whether to stop.
        low, high: learning rate of the first step and of the last.
        steps: how many at most.
        show: told of each step: how many are done, its learning rate and its loss.

    Returns:
        The curve, the same on every process.

    Raises:
        UserError: input that cannot be, or a loss that is not finite from the start.
        StopRequested: a process was asked to stop.
    """
    learner = Learner(config, engine)
    learner.start(None)
    agreement = Agreement(engine, signals)
    meter = StepMeter(engine.device)
    per_epoch = learner.batches.steps_per_epoch
    curve = Curve([], [], math.log(len(learner.manifest.classes)))
    step = 0
    for epoch in range(-(-steps // per_epoch)):
        learner.begin_epoch(epoch)
        for batches, lr in zip(learner.batches.epoch(epoch), rates(low, high, steps)[step:], strict=False):
            agreement.poll()
            learner.step(step, batches, lr, meter)
            step += 1
            meter.end(step=step, epoch=epoch, lr=lr)
            (record,) = meter.take(engine.sum)
            show(step, lr, record.loss)
            if not math.isfinite(record.loss):
                if step == 1:
                    raise UserError(
                        "the loss is not finite in the first step, before any rate was tried; "
                        "look at the data (augment.mean, augment.std), or try --train.precision no"
                    )
                return curve
            curve.lrs.append(lr)
            curve.losses.append(record.loss)
            if curve.diverged():
                return curve
    return curve


def keep(curve: Curve, config: Config) -> Path:
    """Put the curve into the run folder of ``config``, made when there is none; returns its path there."""
    folder = RunFolder(Path(config.run.dir) / config.run.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    curve.save(folder.lr_curve)
    return folder.lr_curve
