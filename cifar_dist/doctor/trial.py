"""A run's own first steps and a save, tried and timed.

Weights, batches, processes and disk are those of the run. Whatever is written is removed again, so an existing run is
not affected.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from cifar_dist import checkpoint
from cifar_dist.config import Config, TrainConfig
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.out_of_memory import ways_to_smaller_steps
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.doctor.finding import Finding, Verdict
from cifar_dist.doctor.grace import Grace, find_grace
from cifar_dist.doctor.network import time_gradients
from cifar_dist.doctor.shared_folder import trial_folder
from cifar_dist.doctor.space import room_for_checkpoints
from cifar_dist.errors import StorageError, UserError
from cifar_dist.formatting import counted, duration, size
from cifar_dist.training.checkpoint_writers import CheckpointWriter, choose_writer
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepLog
from cifar_dist.training.setup import TrainingSetup

_STEPS, _SECONDS = 10, 20  # at most so many timed steps, and about so many seconds


def try_run(setup: TrainingSetup, engine: Engine) -> Iterator[Finding]:
    """Train some steps and save them, and yield what that takes. Collective.

    Raises:
        UserError: what would end the run.
        TrainingFailedError: a loss that is not finite, or processes that do not synchronise.
        StopRequested: a process was asked to stop.
    """
    ranks = engine.ranks
    learner = Learner(setup, engine)
    seconds, images_per_second = _time_steps(setup, learner, engine)
    yield _speed(setup.config.train, setup.steps_per_epoch, seconds, images_per_second)
    size_bytes = sum(p.numel() * p.element_size() for p in setup.module.parameters() if p.requires_grad)
    yield time_gradients(ranks, size_bytes, seconds)
    if ranks.device.type == "cuda":
        ways = ways_to_smaller_steps(setup.config.train, engine.description, ranks.world_size)
        yield _memory(ranks.device, ways)
    writer = choose_writer(setup.config.checkpoint, engine, setup.parameters)
    yield from _save(learner, setup.config, ranks, seconds, writer)


def _time_steps(setup: TrainingSetup, learner: Learner, engine: Engine) -> tuple[float, float]:
    """Median seconds of a step, after a first one that warms up, and images a second of all steps after that."""
    step_log = StepLog(engine.ranks)
    times: list[float] = []
    images = 0  # the last batch of an epoch has fewer, and so has one of more images than there are
    for measured in learner.steps(0, _STEPS + 1, setup.learning_rate):
        step_log.add(measured)
        (record,) = step_log.take()
        if not math.isfinite(record.loss):
            raise UserError(
                f"the loss of step {measured.step} is not finite; check optim.lr, augment.mean and augment.std"
            )
        if measured.step == 1:
            learner.model.assert_synchronised()
        else:
            times.append(record.seconds)
            images += record.samples
            if engine.ranks.run_on_main(lambda: sum(times) > _SECONDS):
                break
        engine.poll()
        step_log.restart_clock()
    return statistics.median(times), images / sum(times)


def _speed(train: TrainConfig, steps_per_epoch: int, seconds: float, images_per_second: float) -> Finding:
    steps, all_steps = train.last_step(steps_per_epoch), train.epochs * steps_per_epoch
    limit = f"{counted(steps, 'step')} of " if steps < all_steps else ""
    rate = f"{seconds:.3g} s each, {images_per_second:,.0f} images/s"
    epochs = f"{limit}{counted(train.epochs, 'epoch')} of {steps_per_epoch:,}"
    return Finding("steps", f"{rate}: about {duration(seconds * steps)} for {epochs}, without evaluation")


def _memory(device: torch.device, ways: str) -> Finding:
    used, whole = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    remedy = "" if used < 0.9 * whole else f"hardly any is left; use {ways}"
    return Finding.ok_or(Verdict.WARNING, "memory", f"{size(used)} of the {size(whole)} of a GPU", remedy)


def _save(
    learner: Learner, config: Config, ranks: Ranks, step_seconds: float, writes: type[CheckpointWriter]
) -> Iterator[Finding]:
    """Save once; yield whether a stop has time for it, and whether the checkpoints to come have room."""
    begin = time.perf_counter()
    folder = Path(config.run.dir)
    with contextlib.ExitStack() as removing:  # on rank 0
        try:
            trial = ranks.run_on_main(lambda: removing.enter_context(trial_folder(folder)))
            writer = writes(trial / "checkpoints", 1, ranks)
            writer.begin(learner.state(writer.deal()), checkpoint.NEW_RUN, prepare=lambda: None)
            size_bytes = ranks.run_on_main(partial(_bytes, writer.end().path))
        except StorageError as error:
            raise UserError(f"run.dir {folder} cannot be written ({error}); choose another --run.dir") from None
    seconds = time.perf_counter() - begin
    grace = ranks.run_on_main(lambda: find_grace(config.run.max_time, os.environ))
    yield _save_time(seconds, size_bytes, step_seconds, config, grace)
    yield ranks.run_on_main(lambda: room_for_checkpoints(config, size_bytes))


def _save_time(seconds: float, size_bytes: int, step_seconds: float, config: Config, grace: Grace) -> Finding:
    """Compare what a stop takes with the time that the job has for it."""
    writes = 2 if config.checkpoint.background else 1  # one may just have begun
    stop = step_seconds + writes * seconds
    text = f"{seconds:.2g} s for {size(size_bytes)}; a stop takes up to {stop:.2g} s of {grace.seconds:.0f} s"
    remedy = grace.remedy.format(seconds=f"{max(3 * stop, 2):.0f}")
    otherwise = Verdict.FAILED if stop > grace.seconds else Verdict.WARNING
    return Finding.ok_or(otherwise, "save", f"{text} ({grace.source})", remedy if stop > grace.seconds / 2 else "")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
