"""All checks, in the order of the table: of the processes of a job, or of what one process can check before it."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from cifar_dist.config import Config
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.doctor.clocks import compare_clocks
from cifar_dist.doctor.dataset import describe_batches, describe_data
from cifar_dist.doctor.finding import Finding
from cifar_dist.doctor.network import check_ports, map_ranks, measure_all_reduce
from cifar_dist.doctor.shared_folder import check_shared_folder
from cifar_dist.doctor.trial import room_for_checkpoints, try_run
from cifar_dist.errors import TrainingFailedError, UserError
from cifar_dist.models import build_for
from cifar_dist.tracking.environment import describe
from cifar_dist.training.setup import build_setup

_STATE_PER_WEIGHT = 3  # the weight, and what most optimizers keep of it


def examine(config: Config | None, engine: Engine, signals: StopSignals) -> Iterator[Finding]:
    """Check machine and processes and, with a ``config``, its run; yields one row after the other. Collective.

    Raises:
        StopRequested: a process was asked to stop.
    """
    ranks = engine.ranks
    yield _machine()
    yield from map_ranks(engine)
    yield Finding.warns("precision", engine.precision.label, engine.precision.advice)
    yield check_ports(ranks)
    yield measure_all_reduce(ranks)
    yield compare_clocks(ranks)
    if config is not None:
        yield check_shared_folder(Path(config.run.dir), ranks)
        yield from _until_error("run", _examine_run(config, engine, signals))


def examine_before(config: Config, world_size: int | None) -> Iterator[Finding]:
    """Check what one process can before its job is submitted.

    Args:
        config: the run.
        world_size: of the job; None if it is not known yet.
    """
    alone = Ranks(0, 1, torch.device("cpu"), first_of_node=True)
    yield from _until_error("run", _examine_settings(config, world_size))
    yield check_shared_folder(Path(config.run.dir), alone)


def _examine_settings(config: Config, world_size: int | None) -> Iterator[Finding]:
    manifest = Manifest.load(config.data.path)
    yield describe_data(manifest)
    if world_size is not None:
        yield describe_batches(config, manifest, world_size)
    torch.manual_seed(config.run.seed)
    module = build_for(config.model, shape=manifest.shape, classes=len(manifest.classes))
    weights = [p.numel() * p.element_size() for p in module.parameters()]
    yield Finding("network", f"{config.model.name}, {sum(p.numel() for p in module.parameters()):,} parameters")
    yield room_for_checkpoints(config, _STATE_PER_WEIGHT * sum(weights))


def _examine_run(config: Config, engine: Engine, signals: StopSignals) -> Iterator[Finding]:
    manifest = engine.ranks.run_on_main(lambda: Manifest.load(config.data.path))
    yield describe_data(manifest)
    yield describe_batches(config, manifest, engine.ranks.world_size)
    setup = build_setup(config, engine.ranks)
    yield Finding("network", f"{config.model.name}, {setup.parameters:,} parameters")
    yield from try_run(setup, engine, signals)


def _until_error(what: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield rows, the last one for the error that would end the run; it is the same on all ranks."""
    try:
        yield from findings
    except (UserError, TrainingFailedError) as error:
        yield Finding.of_error(what, error)


def _machine() -> Finding:
    found = describe()
    gpus, versions = found["gpus"], found["versions"]
    assert isinstance(gpus, list)
    assert isinstance(versions, dict)
    named = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "no GPU"
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "accelerate", "deepspeed") if name in versions
    )
    return Finding("machine", f"{platform.node()}: {found['cores']} cores of {found['cpu']}, {named}; {packages}")
