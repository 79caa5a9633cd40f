"""All ranks of a job train with the same settings and, where it matters, on the same kind of device.

On several machines each is given a command of its own.
"""

from __future__ import annotations

from typing import Final

import torch

from cifar_dist.config import Config, OptimConfig
from cifar_dist.config.optim import MuonConfig
from cifar_dist.config.settings import settings_of
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.errors import UserError

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
