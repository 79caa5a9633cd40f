"""How the launcher of this job was typed, as its ranks say it in the commands that they propose."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "CIFAR_DIST_COMMAND"
"""Environment variable in which a program that starts runs passes on the words that precede a verb, such as
``cifar-dist launch cpu``; empty if nobody typed any."""

SLURM_CONFIG = "CIFAR_DIST_LAUNCH"
"""Environment variable of a Slurm job: the config of ``accelerate launch`` on each node."""

_OF_ANY_ENGINE = ("num", "machine", "main", "nnodes", "rdzv", "max", "local")  # how these options begin


def typed_launcher() -> str:
    """Return the words that precede a verb, quoted for the shell: ``cifar-dist launch CONFIG OPTIONS``, or without."""
    return os.environ.get(VARIABLE) or "cifar-dist"


def command_with_ddp() -> str:
    """Return what to do to start this job with DDP, instead of the launch config that it has."""
    launcher = os.environ.get(VARIABLE)
    if not launcher and SLURM_CONFIG in os.environ:
        return f"set {SLURM_CONFIG}=ddp, or {SLURM_CONFIG}=cpu without GPUs"
    config = "ddp" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"
    program, options = ["cifar-dist", "launch"], list[str]()
    if launcher:
        words = shlex.split(launcher)
        place = next(index for index in reversed(range(len(words))) if not words[index].startswith("--"))
        program, options = words[:place], words[place + 1 :]
    kept = [option for option in options if option.lstrip("-").startswith(_OF_ANY_ENGINE)]
    return f"use: {shlex.join([*program, config, *kept, *_typed_job(sys.argv[1:])])}"


def _typed_job(words: Sequence[str]) -> list[str]:
    """Return the recipe or the verb of a job, with what follows it."""
    if words[:1] == ["launch"]:  # CONFIG and its options follow
        words = words[2:]
        begin = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
        return list(words[begin:])
    return list(words[1:] if words[:1] == ["train"] else words)
