"""All ranks of a job train with the same settings, all on GPUs or all on CPUs and, where it matters, on equal ones.

On several machines each is given a command of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from cifar_dist.config import Config, OptimConfig
from cifar_dist.config.optim import MuonConfig
from cifar_dist.config.settings import settings_of
from cifar_dist.distributed.launch_checks import why_on_cpu
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.errors import MachineError, UserError
from cifar_dist.launch.launched import machine_name
from cifar_dist.launch.typed_command import command_with_cpu

_OF_A_MACHINE: Final = ("data.path", "train.threads")
"""Settings that may differ: where a machine has its copy of the data, and its threads."""
_OF_THE_JOB: Final = ("run.name", "run.seed", "run.stall_timeout", "run.stall_factor", "run.collective_timeout")
"""What counts of section ``run``: of the rest, only rank 0's is used once the ranks have joined.

With another name, a machine that joins an elastic job and becomes rank 0 would begin another run.
"""


def check_same_settings(config: Config, ranks: Ranks) -> None:
    """Refuse ranks with different settings, where these are used. Collective.

    Raises:
        UserError: the first setting that differs, with its values.
    """
    first, *others = ranks.gather_objects(settings_in_common(config))
    for rank, settings in enumerate(others, 1):
        for key in (*first, *settings):
            values = [found.get(key, "not set") for found in (first, settings)]
            if values[0] != values[1]:
                raise UserError(
                    f"{key} is {values[0]} on rank 0 and {values[1]} on rank {rank}; give all machines the same command"
                )


def settings_in_common(config: Config) -> dict[str, object]:
    """Return the settings that all ranks of a job must share."""
    return {
        key: value
        for key, value in settings_of(config).items()
        if key not in _OF_A_MACHINE and (key in _OF_THE_JOB or not key.startswith("run."))
    }


def describe_device_type(*, cpu: bool) -> str:
    """Return what this rank computes on, as :func:`check_same_device_types` reads it on all."""
    return f"{machine_name()}\n{why_on_cpu() if cpu else ''}"


def check_same_device_types(descriptions: Sequence[str]) -> None:
    """Refuse ranks of which some compute on the CPU and others on GPUs: gloo and NCCL would wait for each other.

    Args:
        descriptions: of all ranks, in their order.

    Raises:
        MachineError: with the machines, and why they compute on the CPU.
    """
    found = [(machine, reason) for machine, _, reason in (each.partition("\n") for each in descriptions)]
    slow, fast = ({machine for machine, reason in found if bool(reason) is on_cpu} for on_cpu in (True, False))
    if not (slow and fast):
        return
    if slow & fast:  # that machine hides its GPUs from some of its ranks
        found = [(f"rank {rank} of {machine}", reason) for rank, (machine, reason) in enumerate(found)]
    on_cpu = {name: reason for name, reason in found if reason}
    on_gpus = list(dict.fromkeys(name for name, reason in found if not reason))
    verb = "computes" if len(on_cpu) == 1 else "compute"
    raise MachineError(
        f"{_first_of([*on_cpu])} {verb} on the CPU ({next(iter(on_cpu.values()))}), and {_first_of(on_gpus)} on GPUs; "
        f"start without the former, or on all machines {command_with_cpu()}"
    )


def _first_of(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


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
