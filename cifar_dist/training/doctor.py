"""Whether a run works here, and how long it takes, found out by its own first steps before it waits in a queue.

Weights, batches, processes and disk are those of the run. What is written is removed again, so a run that exists goes
on as if nothing had been.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import platform
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cifar_dist import checkpoint
from cifar_dist.config import Config
from cifar_dist.data.batches import Batch
from cifar_dist.distributed.agreement import Agreement
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.errors import UserError
from cifar_dist.formatting import duration, size
from cifar_dist.optim.schedules import learning_rate
from cifar_dist.tracking.environment import describe
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepMeter

_STEPS, _SECONDS = 10, 20  # timed steps: so many, or as many as so many seconds have room for
_GRACE = 120  # seconds before a time limit at which slurm/train.sbatch asks a job to stop


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what the reader should do about it (empty: nothing)."""

    what: str
    text: str
    advice: str = ""


def examine(config: Config | None, engine: Engine, signals: StopSignals) -> Iterator[Finding]:
    """Look at machine and processes and, with a ``config``, at its run; one finding after the other. Collective.

    Raises:
        UserError: the run would end with this.
        TrainingFailedError: a loss that is not finite, or processes that do not synchronise.
        StopRequested: a process was asked to stop.
    """
    yield _machine()
    yield _processes(engine)
    yield Finding("precision", engine.precision.shown, engine.precision.advice)
    if config is None:
        return
    learner = Learner(config, engine)
    data = learner.manifest
    counts = ", ".join(f"{data.samples(split):,} {split}" for split in data.splits)
    yield Finding("data", f"{data.name}: {counts}; {len(data.classes)} classes, fingerprint {data.fingerprint}")
    learner.start(None)
    yield Finding("network", f"{config.model.name}, {learner.parameters:,} parameters")
    seconds = _steps(learner, config, engine, signals)
    yield _speed(learner, config, seconds)
    if engine.device.type == "cuda":
        yield _memory(engine)
    yield _save(learner, config, engine, seconds)


def _machine() -> Finding:
    found = describe()
    gpus, versions = found["gpus"], found["versions"]
    assert isinstance(gpus, list)
    assert isinstance(versions, dict)
    named = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "no GPU"
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "accelerate", "deepspeed") if name in versions
    )
    return Finding("machine", f"{found['cores']} cores of {found['cpu']}, {named}; {packages}")


def _processes(engine: Engine) -> Finding:
    """Where each is; that they answer each other is seen by asking."""
    places = defaultdict(list)
    device = str(engine.device) if engine.device.type == "cuda" else engine.device.type
    for rank, (host, on) in enumerate(engine.gather_objects((platform.node(), device))):
        places[host].append(f"{rank} ({on})")
    where = "; ".join(f"{host}: rank {', '.join(ranks)}" for host, ranks in places.items())
    several = f"{engine.processes}, " if engine.processes > 1 else ""
    return Finding("processes", f"{several}{engine.wrapper}; {where}")


def _steps(learner: Learner, config: Config, engine: Engine, signals: StopSignals) -> float:
    """Seconds of a step, after a first one that warms up."""
    agreement, meter = Agreement(engine, signals), StepMeter(engine.device)
    per_epoch, epochs = learner.batches.steps_per_epoch, config.train.epochs
    times: list[float] = []
    for step, batches in enumerate(_batches(learner)):
        agreement.poll()
        lr = learning_rate(config.schedule, config.optim.lr, step, steps_per_epoch=per_epoch, epochs=epochs)
        learner.step(step, batches, lr, meter)
        meter.end(step=step + 1, epoch=step // per_epoch, lr=lr)
        (record,) = meter.take(engine.sum)
        if not math.isfinite(record.loss):
            raise UserError(
                f"the loss of step {step + 1} is not finite; look at optim.lr, augment.mean and augment.std"
            )
        if step == 0:
            engine.assert_synchronised()
            meter.restart_clock()
            continue
        times.append(record.seconds)
        if len(times) == _STEPS or engine.decide(lambda: sum(times) > _SECONDS):
            break
    return statistics.median(times)


def _batches(learner: Learner) -> Iterator[list[Batch]]:
    """Those of the run, however many epochs they take."""
    for epoch in itertools.count():
        learner.begin_epoch(epoch)
        yield from learner.batches.epoch(epoch)


def _speed(learner: Learner, config: Config, seconds: float) -> Finding:
    images, steps = config.train.batch_size / seconds, learner.batches.steps_per_epoch
    whole = duration(seconds * steps * config.train.epochs)
    text = f"{seconds:.3g} s each, {images:,.0f} images/s: {config.train.epochs} epochs of {steps:,} take about {whole}"
    return Finding("steps", f"{text}, without evaluation")


def _memory(engine: Engine) -> Finding:
    used, whole = torch.cuda.max_memory_allocated(engine.device), torch.cuda.mem_get_info(engine.device)[1]
    advice = "" if used < 0.9 * whole else "hardly any is left; --train.accumulate 2 takes about half"
    return Finding("memory", f"{size(used)} of the {size(whole)} of a GPU", advice)


def _save(learner: Learner, config: Config, engine: Engine, step_seconds: float) -> Finding:
    begin = time.perf_counter()
    tensors = learner.state()
    folder = Path(config.run.dir)

    def write() -> tuple[int, int]:
        """Bytes of a checkpoint, and those that are free after it."""
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run.dir {folder} cannot be made ({error.strerror}); choose another") from None
        trial = folder / f".doctor.{engine.processes}.tmp"
        try:
            path = checkpoint.save(trial, tensors, checkpoint.NEW_RUN)
            return sum(file.stat().st_size for file in path.iterdir()), shutil.disk_usage(folder).free
        except OSError as error:
            raise UserError(f"run.dir {folder} cannot be written ({error.strerror}); choose another") from None
        finally:
            shutil.rmtree(trial, ignore_errors=True)
            with contextlib.suppress(OSError):  # someone began a run there meanwhile
                for path in made:
                    path.rmdir()

    count, free = engine.decide(write)
    seconds = time.perf_counter() - begin
    stop, advice = seconds + step_seconds, ""
    if free < (config.checkpoint.keep + 2) * count:
        advice = f"{config.checkpoint.keep + 2} checkpoints do not fit; free some, or choose another run.dir"
    elif stop > _GRACE / 2:
        advice = f"a stop takes up to {stop:.0f} s; on Slurm ask for it earlier: sbatch --signal=USR1@{3 * stop:.0f}"
    return Finding("save", f"{seconds:.2g} s for {size(count)}; {size(free)} free in {folder}", advice)
