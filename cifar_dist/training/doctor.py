"""Whether a run works here and how long it takes: its own first steps, tried before it waits in a queue.

Weights, batches, processes and disk are those of the run. Whatever is written is removed again, so an existing run is
not affected.
"""

from __future__ import annotations

import contextlib
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
from cifar_dist.distributed.agreement import Agreement
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.stop_requests import StopRequests
from cifar_dist.distributed.stop_signals import GRACE_SECONDS, StopSignals
from cifar_dist.errors import UserError
from cifar_dist.formatting import duration, size
from cifar_dist.tracking.environment import describe
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepLog
from cifar_dist.training.setup import TrainingSetup, build_setup

_STEPS, _SECONDS = 10, 20  # at most so many timed steps, and about so many seconds


@dataclass(frozen=True)
class Finding:
    """What was checked, what was found, and what the reader should do about it (empty: nothing)."""

    what: str
    text: str
    advice: str = ""


def examine(config: Config | None, engine: Engine, signals: StopSignals) -> Iterator[Finding]:
    """Check machine and processes and, with a ``config``, its run; yields one finding after the other. Collective.

    Raises:
        UserError: what would end the run.
        TrainingFailedError: a loss that is not finite, or processes that do not synchronise.
        StopRequested: a process was asked to stop.
    """
    yield _machine()
    yield _processes(engine)
    yield Finding("precision", engine.precision.label, engine.precision.advice)
    if config is None:
        return
    setup = build_setup(config, engine.ranks)
    data = setup.manifest
    counts = ", ".join(f"{data.samples(split):,} {split}" for split in data.splits)
    yield Finding("data", f"{data.name}: {counts}; {len(data.classes)} classes, fingerprint {data.fingerprint}")
    learner = Learner(setup, engine)
    yield Finding("network", f"{config.model.name}, {setup.parameters:,} parameters")
    seconds = _time_steps(setup, learner, engine.ranks, signals)
    yield _speed(setup, seconds)
    if engine.ranks.device.type == "cuda":
        yield _memory(engine.ranks.device)
    yield _save(learner, config, engine.ranks, seconds)


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
    """Where each rank is. That they reach each other is shown by gathering the answers."""
    places = defaultdict(list)
    device = str(engine.ranks.device) if engine.ranks.device.type == "cuda" else engine.ranks.device.type
    for rank, (host, on) in enumerate(engine.ranks.gather_objects((platform.node(), device))):
        places[host].append(f"{rank} ({on})")
    where = "; ".join(f"{host}: rank {', '.join(ranks)}" for host, ranks in places.items())
    several = f"{engine.ranks.world_size}, " if engine.ranks.world_size > 1 else ""
    return Finding("processes", f"{several}{engine.description}; {where}")


def _time_steps(setup: TrainingSetup, learner: Learner, ranks: Ranks, signals: StopSignals) -> float:
    """Median seconds of a step, after a first one that warms up."""
    agreement, step_log = Agreement(ranks, StopRequests(signals)), StepLog(ranks)
    times: list[float] = []
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
            if ranks.run_on_main(lambda: sum(times) > _SECONDS):
                break
        agreement.poll()
        step_log.restart_clock()
    return statistics.median(times)


def _speed(setup: TrainingSetup, seconds: float) -> Finding:
    train, steps = setup.config.train, setup.steps_per_epoch
    total = duration(seconds * steps * train.epochs)
    rate = f"{seconds:.3g} s each, {train.batch_size / seconds:,.0f} images/s"
    text = f"{rate}: {train.epochs} epochs of {steps:,} take about {total}"
    return Finding("steps", f"{text}, without evaluation")


def _memory(device: torch.device) -> Finding:
    used, whole = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    advice = "" if used < 0.9 * whole else "hardly any is left; --train.accumulate 2 takes about half"
    return Finding("memory", f"{size(used)} of the {size(whole)} of a GPU", advice)


def _save(learner: Learner, config: Config, ranks: Ranks, step_seconds: float) -> Finding:
    begin = time.perf_counter()
    tensors = learner.state()
    folder = Path(config.run.dir)

    def write() -> tuple[int, int]:
        """Bytes of a checkpoint, and bytes that are free beside it."""
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run.dir {folder} cannot be created ({error.strerror}); choose another") from None
        trial = folder / f".doctor.{ranks.world_size}.tmp"
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

    count, free = ranks.run_on_main(write)
    seconds = time.perf_counter() - begin
    stop, advice = seconds + step_seconds, ""
    if free < (config.checkpoint.keep + 2) * count:
        advice = f"{config.checkpoint.keep + 2} checkpoints do not fit; free some, or choose another run.dir"
    elif stop > GRACE_SECONDS / 2:
        advice = f"a stop takes up to {stop:.0f} s; on Slurm ask for it earlier: sbatch --signal=USR1@{3 * stop:.0f}"
    return Finding("save", f"{seconds:.2g} s for {size(count)}; {size(free)} free in {folder}", advice)
