"""All ranks of a job have the same code, engine and settings, and all GPUs or none; where it matters, equal ones.

On several machines each is given a command of its own, and may have an installation and plug-ins of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from cifar_dist.config import Config, OptimConfig, plugins
from cifar_dist.config.optim import MuonConfig
from cifar_dist.config.plugin_code import is_package
from cifar_dist.config.plugin_copies import checksum_of
from cifar_dist.config.settings import settings_of
from cifar_dist.distributed.gpu_checks import why_on_cpu
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.errors import MachineError, UserError
from cifar_dist.files.code_version import commit, shortened, versions
from cifar_dist.formatting import and_more
from cifar_dist.launch.launched import local_processes, machine_name
from cifar_dist.launch.typed_command import command_with_cpu
from cifar_dist.terminal.notice import notice

_OF_A_MACHINE: Final = ("data.path", "train.threads")
"""Settings that may differ: where a machine has its copy of the data, and its threads."""
_OF_THE_JOB: Final = ("run.name", "run.seed", "run.stall_timeout", "run.stall_factor", "run.collective_timeout")
"""What counts of section ``run``: of the rest, only rank 0's is used once the ranks have joined.

With another name, a machine that joins an elastic job and becomes rank 0 would begin another run.
"""
PACKAGES_IN_COMMON: Final = ("cifar-dist", "torch")
"""Packages of which all ranks must have one version."""
CHECKSUM: Final = "the sha256 of "


def check_same_settings(config: Config, ranks: Ranks) -> None:
    """Refuse ranks with different settings, versions or plug-ins, where these are used. Collective.

    Rank 0 warns of another commit of cifar-dist, which may differ in a comment alone.

    Raises:
        UserError: the first of them that differs, with its values.
    """
    own = versions(PACKAGES_IN_COMMON) | settings_in_common(config) | plugin_checksums(config)
    of_ranks = ranks.gather_objects((own, _commit_of_machine(ranks)))
    _refuse_differences([facts for facts, _ in of_ranks])
    commits = {found: rank for rank, (_, found) in reversed([*enumerate(of_ranks)]) if found}
    if ranks.is_main and len(commits) > 1:
        of_each = " and ".join(f"{found} on rank {rank}" for found, rank in reversed(commits.items()))
        notice(f"the commit of cifar-dist is {of_each}: they may compute different things; use one on all machines")


def plugin_checksums(config: Config) -> dict[str, str]:
    """Return the first digits of the sha256 of each plug-in file or package that all ranks use."""
    used = {key: value for key, value in settings_of(config).items() if not key.startswith("tracking.")}  # by rank 0
    found = {code: checksum_of(code)[:12] for code in plugins.code_in(used)}
    return {f"{CHECKSUM}{code}": checksum or "unknown" for code, checksum in found.items()}  # deleted since the import


def _commit_of_machine(ranks: Ranks) -> str:
    """Return the commit that a machine's first process runs, in a job of several machines; empty if it is unknown."""
    if not ranks.first_of_node or local_processes() == ranks.world_size:
        return ""
    return shortened(commit() or "")


def check_same_engine(description: str, ranks: Ranks) -> None:
    """Refuse ranks whose engines are configured differently, as files of DeepSpeed may ask for it. Collective.

    Raises:
        UserError: with the first of them.
    """
    _refuse_differences(ranks.gather_objects({"the engine": description}))


def _refuse_differences(of_ranks: Sequence[Mapping[str, object]]) -> None:
    first, *others = of_ranks
    for rank, other in enumerate(others, 1):
        if found := first_difference(first, other):
            key, value, its_value = found
            raise UserError(f"{key} is {value} on rank 0 and {its_value} on rank {rank}; {way_to_agree(key)}")


def first_difference(one: Mapping[str, object], other: Mapping[str, object]) -> tuple[str, object, object] | None:
    """Return the first key whose values differ, and both values, ``not set`` where one lacks it; None if none does."""
    for key in (*one, *other):
        values = one.get(key, "not set"), other.get(key, "not set")
        if values[0] != values[1]:
            return key, *values
    return None


def way_to_agree(key: str) -> str:
    """Say what to do where :func:`first_difference` has found ``key``."""
    if key in PACKAGES_IN_COMMON or (key.startswith(CHECKSUM) and is_package(key)):
        return "install the same version on all machines"
    if key.startswith(CHECKSUM):
        return "give all machines the same file"
    return "give all machines the same command"


def settings_in_common(config: Config) -> dict[str, object]:
    """Return the settings that all ranks of a job must share."""
    return {
        key: value
        for key, value in settings_of(config).items()
        if key not in _OF_A_MACHINE and (key in _OF_THE_JOB or not key.startswith("run."))
    }


def describe_launch(engine: str, *, cpu: bool) -> str:
    """Return how this rank was launched, as :func:`check_same_launch` reads it on all ranks.

    Args:
        engine: that of the launch config, for a reader.
        cpu: whether the rank computes on the CPU.
    """
    return f"{machine_name()}\n{engine}\n{why_on_cpu() if cpu else ''}"


def check_same_launch(descriptions: Sequence[str]) -> None:
    """Refuse ranks with different engines, or of which only some compute on GPUs: they would wait for each other.

    Args:
        descriptions: of all ranks, in their order.

    Raises:
        MachineError: with the machines, and the engines, or why some compute on the CPU.
    """
    found = [description.split("\n") for description in descriptions]
    if len({machine for machine, _, _ in found}) < len({(machine, engine, not why) for machine, engine, why in found}):
        found = [[f"rank {rank} of {machine}", *others] for rank, (machine, *others) in enumerate(found)]
    engines = {engine: machine for machine, engine, _ in reversed(found)}
    if len(engines) > 1:
        of_machines = " and ".join(f"{engine} on {machine}" for engine, machine in reversed(engines.items()))
        raise MachineError(f"the launch config is for {of_machines}; give all machines the same command")
    on_cpu = {machine: why for machine, _, why in found if why}
    on_gpus = list(dict.fromkeys(machine for machine, _, why in found if not why))
    if on_cpu and on_gpus:
        verb = "computes" if len(on_cpu) == 1 else "compute"
        slow = f"{and_more([*on_cpu][:1], len(on_cpu))} {verb} on the CPU ({next(iter(on_cpu.values()))})"
        raise MachineError(
            f"{slow}, and {and_more(on_gpus[:1], len(on_gpus))} on GPUs; start without the former, or on all machines "
            f"{command_with_cpu()}"
        )


def check_same_devices(optimizer: OptimConfig, name: str, ranks: Ranks) -> None:
    """Refuse Muon on several kinds of GPU. Collective.

    Each process computes its products of matrices, which they round differently, so that the weights would drift apart.

    Args:
        optimizer: the section ``optim``.
        name: of this process's device, for a reader.
        ranks: this process among all of the job.

    Raises:
        UserError: with the devices.
    """
    found = dict(ranks.gather_objects((_kind(ranks.device), name)))
    if isinstance(optimizer, MuonConfig) and len(found) > 1:
        raise UserError(
            f'optim.name = "{optimizer.name}" would give each process its own weights on '
            f"{' and '.join(sorted(found.values()))}, which round differently; use devices of one kind, or "
            "--optim.name sgd"
        )


def _kind(device: torch.device) -> tuple[object, ...]:
    """What the choice of a kernel depends on: an architecture and its size, not the memory."""
    if device.type != "cuda":
        return (device.type,)
    found = torch.cuda.get_device_properties(device)
    return found.major, found.minor, found.multi_processor_count
