"""Checks that the launcher did what it was asked for.

Several launches exit 0 without doing what was asked: ``accelerate launch --cpu --num_processes 2`` starts one process,
and two processes under torchrun may never join. A run on half its machine is worse than an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from cifar_dist.errors import GpuError, MachineError, UserError, first_line
from cifar_dist.formatting import counted
from cifar_dist.launch.gpus import check_number_of_gpus
from cifar_dist.launch.launched import (
    launched_processes,
    local_processes,
    local_rank,
    machine_name,
    parent_command,
    was_asked_for,
)
from cifar_dist.launch.options import read_config

_PLACE = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # Accelerate takes them for WORLD_SIZE
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
    """Refuse a GPU on which torch cannot compute: one too old for it, or one that another program has to itself.

    Raises:
        GpuError: with torch's reason.
    """
    import torch

    from cifar_dist.distributed.precision import own_gpu

    number = own_gpu()
    try:
        torch.ones(1, device=f"cuda:{number}").tolist()
    except RuntimeError as error:
        raise GpuError(
            f"torch {torch.__version__} cannot compute on GPU {number} of {machine_name()}, "
            f"{torch.cuda.get_device_name(number)} ({first_line(error)}); choose another with CUDA_VISIBLE_DEVICES, "
            "install a torch for this one, or use: cifar-dist launch cpu"
        ) from None


def describe_unused_gpu(devices: Path = Path("/dev")) -> str:
    """Say why a run takes the CPU of a machine with a GPU that nobody has excluded; empty otherwise.

    Args:
        devices: folder of the machine's devices.
    """
    import torch

    if not (_has_gpu(devices) and _shows_gpus()) or was_asked_for("CPU") or torch.cuda.is_available():
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
    return f"torch cannot use its GPU: {_torch_problem()}" if _has_gpu(devices) else "it has no GPU"


def _shows_gpus() -> bool:
    return re.match(r"\d|GPU-|MIG-", os.environ.get(_VISIBLE, "0")) is not None


def _has_gpu(devices: Path) -> bool:
    return any(devices.glob("nvidia[0-9]*"))


def _torch_problem() -> str:
    """Say why torch cannot use the GPUs of this machine."""
    import torch

    if torch.backends.cuda.is_built():
        try:
            torch.cuda.init()
        except RuntimeError as error:
            return first_line(error)
    return "it is built for CPUs"


def check_cpu_is_used() -> None:
    """Refuse GPUs to a process whose ``accelerate launch`` was asked for CPUs.

    With ``use_cpu`` in a config, only one that starts a single process passes that on.

    Raises:
        UserError: with what hides the GPUs.
    """
    flags = _launcher_flags()
    config = "" if flags is None else _config_path(flags)
    if _read(config).get("use_cpu") is True:
        raise UserError(
            f'{config} says use_cpu, which accelerate launch does not pass to its processes; add gpu_ids: "-1,-2" to '
            "it, or use: cifar-dist launch CONFIG RECIPE"
        )


def requested_processes() -> int | None:
    """The number of processes that the parent ``accelerate launch`` was asked for; None where that is unknown."""
    flags = _launcher_flags()
    if flags is None:
        return None
    if "num_processes" in flags:
        return int(flags["num_processes"]) if flags["num_processes"].isdecimal() else None
    asked = _read(_config_path(flags)).get("num_processes")
    return asked if isinstance(asked, int) and asked > 0 else None


def _launcher_flags() -> dict[str, str] | None:
    """The options of the parent ``accelerate launch``; None where the parent is another program."""
    command = parent_command()
    if "launch" not in command or not any("accelerate" in word for word in command[: command.index("launch")]):
        return None
    return _flags(command[command.index("launch") + 1 :])


def _config_path(flags: Mapping[str, str]) -> str:
    """The config of ``accelerate launch`` with these options; empty where it reads none."""
    return flags.get("config_file") or ("" if "cpu" in flags else _default_config())


def _read(config: str) -> Mapping[str, object]:
    """Read a config, which Accelerate has accepted; empty where it cannot be read."""
    try:
        return read_config(Path(config))
    except UserError:
        return {}


def _default_config() -> str:
    """Return the file that ``accelerate config`` wrote, or would write."""
    from accelerate.commands.config.config_args import default_config_file

    return str(default_config_file)


def _flags(words: list[str]) -> dict[str, str]:
    """The launcher's own ``--name value`` pairs: those before the script's name."""
    flags: dict[str, str] = {}
    position = 0
    while position < len(words) and words[position].startswith("-"):
        name, equals, value = words[position].lstrip("-").partition("=")
        if not equals and position + 1 < len(words) and not words[position + 1].startswith("-"):
            value = words[position + 1]
            position += not value.endswith(".py")
        flags[name.replace("-", "_")] = value
        position += 1
    return flags


def check_launch(expected: int) -> None:
    """Refuse a launch that started another number of processes than it was asked for.

    Args:
        expected: ``run.processes``; 0 for any number.

    Raises:
        UserError: another number of processes runs than was asked for, or ``WORLD_SIZE`` is not a number of them.
        MachineError: they cannot find each other.
    """
    started = launched_processes()
    asked = requested_processes()
    if asked is not None and started == 1 and asked > 1:
        raise UserError(
            f"accelerate launch was asked for {asked} processes and started 1 (its --cpu and MULTI_CPU do that); "
            f"use: accelerate launch --config_file launch/cpu.yaml --num_processes {asked} train.py ..."
        )
    if expected and started != expected:
        raise UserError(
            f"run.processes asks for {expected} processes and the launcher started {started}; "
            f"use: cifar-dist launch CONFIG --num_processes={expected} RECIPE, or --run.processes {started}"
        )
    _check_place(started)


def _check_place(started: int) -> None:
    """Refuse an environment from which Accelerate would join processes, and which does not say all that they need.

    Raises:
        MachineError: a variable is missing or invalid.
    """
    reason = _why_it_joins(started)
    wrong = next((name for name in _PLACE if not _is_valid(name, os.environ.get(name), started)), None)
    if reason and wrong:
        found = repr(os.environ[wrong]) if wrong in os.environ else "not set"
        left = " ".join(name for name in (*_PLACE, *_MPI_SIZES) if name in os.environ)
        raise MachineError(
            f"{reason}, but {wrong} is {found}; start with cifar-dist launch, accelerate launch or torchrun, or, for "
            f"one process, first: unset {left}"
        )


def _why_it_joins(started: int) -> str:
    """Return the variable that makes Accelerate join several processes, and its value; empty if none does."""
    if started > 1:
        return f"WORLD_SIZE is {started}"
    if os.environ.get("LOCAL_RANK", "") not in ("", "-1"):
        return f"LOCAL_RANK is {os.environ['LOCAL_RANK']}"
    sizes = () if "WORLD_SIZE" in os.environ else _MPI_SIZES
    return next((f"{name} is {os.environ[name]}" for name in sizes if os.environ.get(name, "1") != "1"), "")


def _is_valid(name: str, text: str | None, started: int) -> bool:
    """Whether ``started`` processes can join with ``text`` as a variable of ``_PLACE``; None if that is not set."""
    if name == "LOCAL_RANK":
        return text in (None, "", "-1") or text.isdecimal()
    if text is None or name in ("WORLD_SIZE", "MASTER_ADDR"):
        return bool(text)
    return text.isdecimal() and int(text) < (started if name == "RANK" else 65_536)
