"""This process's place in its job, as the launcher says it in variables, before any process group exists."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cifar_dist.errors import UserError

RESTARTED = "CIFAR_DIST_RESTARTED"
"""Environment variable of the ranks of an elastic job that continues on other machines than before."""


def machine_name() -> str:
    """Return the name of this machine."""
    return os.uname().nodename


def launched_processes() -> int:
    """Return the number of processes that the launcher says it started: ``WORLD_SIZE``, or 1 without a launcher.

    Raises:
        UserError: ``WORLD_SIZE`` is not a number of processes.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"WORLD_SIZE is {text!r}, not a number of processes; start with accelerate launch or torchrun")
    return int(text)


def local_processes() -> int:
    """Return the number of processes of this job on this machine."""
    return _number("LOCAL_WORLD_SIZE") or launched_processes()


def is_main_process() -> bool:
    """Whether this is rank 0, before any process group exists.

    So is one whose variables do not make it another rank, as another job may have left them: somebody must say so.
    """
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and size.isdecimal() and knows_meeting_point()):
        return True
    return not 0 < int(rank) < int(size)


def is_first_of_machine() -> bool:
    """Whether this is the process that reports what one machine of the job lacks, before any process group exists."""
    return is_main_process() or local_rank() == 0


def local_rank() -> int:
    """Return the number of this process among those of this machine, from 0."""
    return _number("LOCAL_RANK")


def attempt_number(variables: Mapping[str, str]) -> int:
    """Return the number of the attempt of a Slurm job, from 1, which it also is without Slurm."""
    return int(variables.get("SLURM_RESTART_COUNT", "0")) + 1


def has_restarted() -> bool:
    """Whether this rank's job was started again, perhaps because it lost a machine: by its launcher, or by Slurm."""
    return is_continuation() or times_restarted() > 0


def is_continuation() -> bool:
    """Whether this rank's job was started again, as all its ranks know.

    Each of torchrun's agents counts only the failures of its own ranks.
    """
    return RESTARTED in os.environ or attempt_number(os.environ) > 1


def times_restarted() -> int:
    """Return how often torchrun has started the ranks again because one had failed."""
    return _number("TORCHELASTIC_RESTART_COUNT")


def will_restart() -> bool:
    """Whether the launcher starts the ranks again if they fail, as in elastic jobs, or with ``--max-restarts``."""
    return times_restarted() < _number("TORCHELASTIC_MAX_RESTARTS")


def _number(variable: str) -> int:
    """Return the value of an environment variable; 0 if it is not set, or is not a number."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


def knows_meeting_point() -> bool:
    """Whether a launcher said where the processes of the job meet, even if there is only one."""
    return "MASTER_ADDR" in os.environ


def was_asked_for(what: str) -> bool:
    """Whether the config of ``accelerate launch`` says ``CPU``, ``DEEPSPEED`` or ``FSDP``."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "").lower() == "true"


def deepspeed_stage() -> str:
    """Return the stage of ZeRO that the config of ``accelerate launch`` says; empty where it says none."""
    return os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")


def parent_command() -> list[str]:
    """Return the words of the process that started this one; empty if they are unknown."""
    import psutil

    try:
        words: list[str] = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return []
    return words
