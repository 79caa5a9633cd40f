"""Checks that the launcher did what it was asked for.

Several launches exit 0 without doing what was asked: ``accelerate launch --cpu --num_processes 2`` starts one process,
and two processes under torchrun may never join. A run on half its machine is worse than an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cifar_dist.errors import MachineError, UserError
from cifar_dist.launch.launched import launched_processes, parent_command
from cifar_dist.launch.options import read_config

_PLACE = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # Accelerate takes them for WORLD_SIZE


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
            f"run.processes is {expected} and the launcher started {started}; "
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
    """Whether ``started`` processes can join with ``text``, or None for no value, as a variable of ``_PLACE``."""
    if name == "LOCAL_RANK":
        return text in (None, "", "-1") or text.isdecimal()
    if text is None or name in ("WORLD_SIZE", "MASTER_ADDR"):
        return bool(text)
    return text.isdecimal() and int(text) < (started if name == "RANK" else 65_536)
