"""The GPUs that torch sees on this machine, the one of this process, and why it computes on a CPU instead."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from cifar_dist.errors import GpuError, first_line
from cifar_dist.formatting import counted
from cifar_dist.launch.gpu_devices import count_gpus
from cifar_dist.launch.gpus import check_gpu, check_number_of_gpus
from cifar_dist.launch.launched import local_processes, local_rank, machine_name, was_asked_for

_VISIBLE = "CUDA_VISIBLE_DEVICES"  # empty, negative or another word where there is none


def check_gpus(gpus: int) -> None:
    """Refuse a launch of more processes than this machine has GPUs, before the processes join.

    Two processes would share a GPU, which ends in an error of NCCL. Only torchrun gives all processes of a machine the
    same GPUs; other launchers may show each its own, of which DeepSpeed would take the one of the local rank's number.

    Args:
        gpus: the number that this process sees.

    Raises:
        MachineError: there are fewer than processes.
        GpuError: DeepSpeed would take one that this process does not see.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        check_number_of_gpus(gpus, local_processes(), deepspeed=was_asked_for("DEEPSPEED"))
    if was_asked_for("DEEPSPEED") and local_rank() >= gpus:
        raise GpuError(
            f"DeepSpeed takes GPU {local_rank()} of {machine_name()} for rank {os.environ.get('RANK', '0')}, "
            f"which sees {counted(gpus, 'GPU')}; show each process all GPUs of its machine, or use launch/ddp.yaml or "
            "launch/fsdp.yaml"
        )


def check_own_gpu() -> None:
    """Refuse the GPU of this process if torch cannot compute on it.

    Raises:
        GpuError: with torch's reason.
    """
    check_gpu(own_gpu())


def own_gpu() -> int:
    """Return the number of the GPU that Accelerate will give this process."""
    return local_rank() % torch.cuda.device_count()


def describe_unused_gpu(devices: Path = Path("/dev")) -> str:
    """Say why a run takes the CPU of a machine with a GPU that nobody has excluded; empty otherwise.

    Args:
        devices: folder of the machine's devices.
    """
    if not (count_gpus(devices) and _shows_gpus()) or was_asked_for("CPU") or torch.cuda.is_available():
        return ""
    problem = f"this machine has a GPU that torch {torch.__version__} cannot use ({_torch_problem()})"
    return f"{problem}; the run takes the CPU"


def why_on_cpu(devices: Path = Path("/dev")) -> str:
    """Say why this process computes on the CPU.

    Args:
        devices: folder of the machine's devices.
    """
    if was_asked_for("CPU"):
        return "its launch config is for CPUs"
    if not _shows_gpus():
        return f"{_VISIBLE}={os.environ[_VISIBLE]}"
    return f"torch cannot use its GPU: {_torch_problem()}" if count_gpus(devices) else "it has no GPU"


def _shows_gpus() -> bool:
    return re.match(r"\d|GPU-|MIG-", os.environ.get(_VISIBLE, "0")) is not None


def _torch_problem() -> str:
    """Say why torch cannot use the GPUs of this machine."""
    if torch.backends.cuda.is_built():
        try:
            torch.cuda.init()
        except RuntimeError as error:
            return first_line(error)
    return "it is built for CPUs"
