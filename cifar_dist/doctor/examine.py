"""All checks of the processes of a job, in the order of the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cifar_dist.config import Config
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.same_dataset import open_dataset
from cifar_dist.doctor.clocks import compare_clocks
from cifar_dist.doctor.dataset import describe_batches, describe_data, describe_network
from cifar_dist.doctor.finding import Finding, Verdict, until_error
from cifar_dist.doctor.network import check_ports, map_ranks, measure_all_reduce
from cifar_dist.doctor.shared_folder import check_shared_folder
from cifar_dist.doctor.trial import try_run
from cifar_dist.launch.launched import machine_name
from cifar_dist.tracking.environment import describe
from cifar_dist.training.requirements import check_evaluations
from cifar_dist.training.setup import build_setup


def examine(config: Config | None, engine: Engine) -> Iterator[Finding]:
    """Check machine and processes and, with a ``config``, its run; yields one row after the other. Collective.

    Raises:
        StopRequested: a process was asked to stop.
    """
    ranks = engine.ranks
    yield _machine()
    yield from map_ranks(engine)
    yield Finding.ok_or(Verdict.WARNING, "precision", engine.precision.label, engine.precision.advice)
    yield check_ports(ranks)
    yield measure_all_reduce(ranks)
    yield compare_clocks(ranks)
    if config is not None:
        yield check_shared_folder(Path(config.run.dir), ranks)
        yield from until_error(_examine_run(config, engine))


def _examine_run(config: Config, engine: Engine) -> Iterator[Finding]:
    manifest = open_dataset(config.data.path, engine.ranks)
    yield describe_data(manifest)
    yield describe_batches(config, manifest, engine.ranks.world_size)
    setup = build_setup(config, engine.ranks)
    engine.ranks.run_on_all(lambda: check_evaluations(config, manifest))
    yield describe_network(config, setup.module, engine.ranks.world_size)
    yield from try_run(setup, engine)


def _machine() -> Finding:
    found = describe()
    gpus, versions = found["gpus"], found["versions"]
    assert isinstance(gpus, list)
    assert isinstance(versions, dict)
    named = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "no GPU"
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "accelerate", "deepspeed") if name in versions
    )
    return Finding("machine", f"{machine_name()}: {found['cores']} cores of {found['cpu']}, {named}; {packages}")
