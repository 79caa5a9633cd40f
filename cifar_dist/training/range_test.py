"""The learning-rate range test of a recipe: its own steps on its own batches, at rising learning rates.

A test trains new weights and discards them: it neither reads nor writes a checkpoint, so an existing run is not
affected. Only its curve is kept, in the run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from cifar_dist.config import Config
from cifar_dist.config.changes import NOT_RANGE_TESTED, contradiction
from cifar_dist.config.settings import settings_of
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.engine import Engine
from cifar_dist.errors import UserError
from cifar_dist.files.folders import is_writable
from cifar_dist.optim.lr_curve import Curve, rates
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.opening import refuse_other_data
from cifar_dist.run_folder.settings import started_settings
from cifar_dist.terminal.notice import notice
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepLog
from cifar_dist.training.setup import TrainingSetup, build_setup

Show = Callable[[int, float, float], None]
"""Receives the steps done, the learning rate and the loss."""

_CHEAP = 1_000_000  # parameters: with fewer, a test of several seeds takes seconds
_SEEDS = 3


def run_range_tests(
    config: Config,
    engine: Engine,
    *,
    low: float,
    high: float,
    steps: int,
    seeds: int | None = None,
    showing: Callable[[int], AbstractContextManager[Show]],
) -> list[Curve]:
    """Train from new weights at rising rates, until the loss diverges, with several seeds in turn. Collective.

    Args:
        config: the recipe's, with the first seed; its schedule is not used.
        engine: this process in the job.
        low, high: learning rate of the first step and of the last.
        steps: the most steps of a test.
        seeds: number of tests; None for three of a network of fewer than a million parameters, and one of a larger one.
        showing: called with the number of each test, from 0; what it yields is called after each step of that test.

    Returns:
        The curve of each test, equal on every process.

    Raises:
        UserError: input that cannot be trained, or a loss that is not finite in the first step.
        StopRequested: a process was asked to stop.
    """
    curves: list[Curve] = []
    while seeds is None or len(curves) < seeds:
        test = len(curves)
        own = config.with_run(seed=(config.run.seed + test) % 2**31)
        setup = build_setup(own, engine.ranks)
        seeds = seeds or (_SEEDS if setup.parameters < _CHEAP else 1)
        with showing(test) as show:
            curves.append(_run_one(setup, engine, steps, rates(low, high, steps).__getitem__, show))
    return curves


def _run_one(setup: TrainingSetup, engine: Engine, steps: int, rate_of: Callable[[int], float], show: Show) -> Curve:
    """Run one test; ``rate_of`` maps the steps done to the learning rate of the next."""
    learner = Learner(setup, engine)
    for note in learner.notes if engine.ranks.is_main else ():
        notice(note)
    step_log = StepLog(engine.ranks)
    curve = Curve([], [], math.log(len(setup.manifest.classes)))
    for measured in learner.steps(0, steps, rate_of):
        step_log.add(measured)
        (record,) = step_log.take()
        learner.clock.read()
        show(measured.step, measured.lr, record.loss)
        if not math.isfinite(record.loss):
            if measured.step == 1:
                raise UserError(
                    "the loss is not finite in the first step, before any rate was tried; "
                    "check augment.mean and augment.std, or try --train.precision no"
                )
            break
        curve.lrs.append(measured.lr)
        curve.losses.append(record.loss)
        if curve.diverged():
            break
        engine.poll()
    return curve


def require_place(config: Config) -> None:
    """Refuse a run folder that :func:`save_curve` could not write, or whose report the curve would not fit.

    Raises:
        UserError: no folder can be there, or it is that of a run with other settings than the rate and its schedule,
            or on other data.
    """
    folder = RunFolder.of(config)
    path = folder.path
    started = started_settings(folder) if folder.exists() else None
    if started and (found := contradiction(started, settings_of(config), NOT_RANGE_TESTED)):
        raise UserError(f"{path} was started with {found[1]}; its report would show this curve; use --run.name NEW")
    if started and folder.manifest.is_file():
        refuse_other_data(folder, Manifest.load(config.data.path), "use --run.name NEW")
    place = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    if not place.is_dir() or not is_writable(place):
        cause = f"permission denied in {place}" if place.is_dir() else f"{place} stands in the way"
        raise UserError(f"the run folder {path} cannot be written: {cause}; use another --run.dir")


def save_curve(curve: Curve, config: Config) -> Path:
    """Write the curve into the run folder of ``config``, creating it where it does not exist; returns its path."""
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True, exist_ok=True)
    curve.save(folder.lr_curve, settings_of(config), Manifest.load(config.data.path).fingerprint)
    return folder.lr_curve
