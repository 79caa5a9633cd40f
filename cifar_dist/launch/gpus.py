"""The GPUs of a machine, and the processes that a launcher starts there."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from cifar_dist.errors import GpuError, MachineError, first_line
from cifar_dist.exit_codes import EXIT_BAD_INPUT, how_it_ended
from cifar_dist.formatting import counted
from cifar_dist.launch.launched import machine_name
from cifar_dist.launch.options import LaunchRequest
from cifar_dist.launch.typed_command import command_with_cpu, ways_to_fewer_processes

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


def check_gpu(number: int) -> None:
    """Refuse a GPU on which torch cannot compute: one too old for it, or one that another program has to itself.

    Raises:
        GpuError: with torch's reason.
    """
    try:
        torch.ones(1, device=f"cuda:{number}").tolist()
    except RuntimeError as error:
        raise GpuError(
            f"torch {torch.__version__} cannot compute on GPU {number} of {machine_name()}, "
            f"{torch.cuda.get_device_name(number)} ({first_line(error)}); choose another with CUDA_VISIBLE_DEVICES, "
            "install a torch for this one, or use: cifar-dist launch cpu"
        ) from None


def check_gpus_of_ranks(processes: int, kind: str, without: str) -> None:
    """Refuse this machine if the ranks that a launcher is about to start cannot compute on its GPUs.

    Args:
        processes: how many are started; 0 for one for each GPU.
        kind: ``distributed_type`` of the launcher's config.
        without: what to say where there is no GPU, and the kind requires one.

    Raises:
        MachineError: it has none, or fewer than processes.
        GpuError: torch cannot compute on one.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus:
        if kind == "MULTI_GPU":
            raise MachineError(without)
        return
    check_number_of_gpus(gpus, processes, deepspeed=kind == "DEEPSPEED")
    for number in range(min(gpus, processes or gpus)):
        check_gpu(number)


def check_gpus_apart(asked: LaunchRequest) -> None:
    """:func:`check_gpus_of_ranks` in a process of its own, which leaves no memory of the GPUs in use.

    Raises:
        MachineError: of that check; or it has failed.
    """
    if asked.use_cpu:
        return
    without = f"{machine_name()} has no GPU that torch can use, and {asked.config} is for GPUs; {command_with_cpu()}"
    words = ["-c", f"from {__name__} import main; main()", str(asked.processes or 0), asked.kind, without]
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode == EXIT_BAD_INPUT:
        raise MachineError(done.stdout.strip())
    if done.returncode:
        how = how_it_ended(done.returncode)
        raise MachineError(f"the check of the GPUs of {machine_name()} {how}; see: cifar-dist doctor")


def main() -> None:
    """Check the GPUs for the launcher that has started this process, and report to it."""
    processes, kind, without = sys.argv[1:]
    try:
        check_gpus_of_ranks(int(processes), kind, without)
    except MachineError as error:
        print(error)
        sys.exit(EXIT_BAD_INPUT)
