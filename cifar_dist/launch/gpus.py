"""The GPUs of a machine, and the processes that a launcher starts there."""

from __future__ import annotations

import os

from cifar_dist.errors import MachineError
from cifar_dist.formatting import counted
from cifar_dist.launch.launched import machine_name
from cifar_dist.launch.typed_command import ways_to_fewer_processes

_SHARED_GPUS = "NCCL_MULTI_RANK_GPU_ENABLE"  # with 1, NCCL 2.30 lets several processes share a GPU


def check_number_of_gpus(gpus: int, processes: int, *, deepspeed: bool) -> None:
    """Refuse more processes on this machine than it has GPUs: two would share one, which ends in an error of NCCL.

    Args:
        gpus: how many all of the processes see.
        processes: how many the launcher starts on it.
        deepspeed: whether DeepSpeed chooses the GPUs, which gives each process one.

    Raises:
        MachineError: with what to use instead.
    """
    can_share = os.environ.get(_SHARED_GPUS) == "1" and not deepspeed
    if processes > gpus and not can_share:
        raise MachineError(
            f"{machine_name()} has {counted(gpus, 'GPU')}, and the launcher starts {processes} processes on it; "
            f"{ways_to_fewer_processes(gpus)} for any number on its CPU"
        )
