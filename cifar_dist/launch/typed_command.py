"""The command that started this job, as one types it, and the commands that its processes propose to type."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from cifar_dist.errors import quoted
from cifar_dist.launch.gpu_devices import count_gpus
from cifar_dist.launch.launched import launched_processes, parent_command

VARIABLE = "CIFAR_DIST_COMMAND"
"""Environment variable in which a program that starts runs passes on the words that precede a verb, such as
``cifar-dist launch cpu``; empty if nobody typed any."""

SLURM_CONFIG = "CIFAR_DIST_LAUNCH"
"""Environment variable of a Slurm job: the config of ``accelerate launch`` on each node."""

SLURM_PROCESSES = "CIFAR_DIST_PROCESSES_PER_NODE"
"""Environment variable of a Slurm job: the number of processes on each node, if it is not that of its GPUs."""

_PROGRAMS = ("cifar-dist", "cifar_dist")  # that know verbs: the command, and the package after -m
_OF_ANY_ENGINE = ("num", "machine", "main", "nnodes", "rdzv", "max", "local")  # how these options begin


def typed_command() -> str:
    """Return the command that started this process, or the launcher above it, quoted for the shell."""
    return shlex.join(_typed())


def command_for_verbs() -> str:
    """Return the words that precede a verb to run it in processes like those of this job, quoted for the shell."""
    launcher = os.environ.get(VARIABLE)
    return (_other_launcher() if launcher is None else launcher) or "cifar-dist"


def command_for_recipes() -> str:
    """Return the words that precede a recipe to train it in processes like those of this job, quoted for the shell."""
    return os.environ.get(VARIABLE) or f"{command_for_verbs()} train"


def resume_command(run: Path) -> str:
    """Return the command that resumes a run in processes like those of this job, quoted for the shell.

    It is empty if nobody typed the one that started this job. A program with another command line, such as
    ``train.py``, resumes the run if it is typed again.
    """
    launcher = os.environ.get(VARIABLE)
    if launcher is None:
        words = _typed()
        before = _words_before(words, ("train", "resume"))
        if before is None:
            return shlex.join(_without_fresh(words))
        launcher = shlex.join(before)
    return f"{launcher} resume {quoted(run)}" if launcher else ""


def launcher_command(config: str, options: Sequence[str]) -> str:
    """Return ``cifar-dist launch CONFIG OPTIONS`` with the program that was typed; empty if nobody typed one."""
    program = os.environ.get(VARIABLE)
    if program is None:
        program = f"{shlex.join(_words_before(_typed(), ('launch',)) or ['cifar-dist'])} launch"
    return f"{program} {shlex.join([config, *options])}" if program else ""


def command_with_ddp() -> str:
    """Return what to do to start this job with DDP, instead of the launch config that it has."""
    if not os.environ.get(VARIABLE) and SLURM_CONFIG in os.environ:
        return f"set {SLURM_CONFIG}=ddp, or {SLURM_CONFIG}=cpu without GPUs"
    return _command_with("ddp" if count_gpus() else "cpu")


def command_with_cpu() -> str:
    """Return what to do to start this job without GPUs."""
    return f"set {SLURM_CONFIG}=cpu" if os.environ.get(VARIABLE) == "" else _command_with("cpu")


def ways_to_fewer_processes(number: int) -> str:
    """Return what to do to start ``number`` processes on this machine, or others without GPUs."""
    if os.environ.get(VARIABLE) == "":
        return f"set {SLURM_PROCESSES}={number}, or {SLURM_CONFIG}=cpu"
    return f"use --num_processes={number}, or cifar-dist launch cpu"


def _command_with(config: str) -> str:
    launcher = os.environ.get(VARIABLE)
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


def _words_before(words: Sequence[str], verbs: Collection[str]) -> list[str] | None:
    """Return the words before the verb; None if it is not one of ``verbs``, or the program knows no verbs.

    It follows the program directly: further on, the same word is a value, as in ``--eval.split train``.
    """
    for place, (program, verb) in enumerate(itertools.pairwise(words), 1):
        if Path(program).name in _PROGRAMS and verb in verbs:
            return list(words[:place])
    return None


def _without_fresh(words: Sequence[str]) -> list[str]:
    """Drop ``--run.fresh``, which refuses a run that exists, and its value."""
    kept = [word for word in words if not word.startswith("--run.fresh=")]
    if "--run.fresh" in kept:
        place = kept.index("--run.fresh")
        del kept[place : place + 1 + (kept[place + 1 : place + 2] == ["true"])]
    return kept


def _typed() -> list[str]:
    return _shorten(_launcher_above() or sys.orig_argv)


def _other_launcher() -> str:
    """Return ``accelerate launch`` or ``torchrun`` with their options and this program, quoted; empty without one."""
    above, own = _launcher_above(), sys.argv[1:]
    count = len(above) - len(own)
    if count < 1 or above[count:] != own:
        return ""
    launcher = above[: count - 1]  # without train.py, which knows no verbs, or cifar_dist
    if launcher[-1] in ("-m", "--module"):
        launcher = launcher[:-1]
    return shlex.join([*_shorten(launcher), "-m", "cifar_dist"])


def _launcher_above() -> list[str]:
    """Return the words of the ``accelerate launch`` or ``torchrun`` that started this process; empty without one."""
    above = parent_command()
    launchers = {"accelerate", "torchrun"} & {Path(word).name for word in above[:2]}
    return above if launchers and (launched_processes() > 1 or "accelerate" in launchers) else []


def _shorten(words: Sequence[str]) -> list[str]:
    """Drop the interpreter of a script that starts by itself, and the folder of a program that the PATH finds."""
    program, *rest = words
    if rest and Path(rest[0]).suffix == "" and os.access(rest[0], os.X_OK) and Path(rest[0]).is_file():
        program, *rest = rest
    found = shutil.which(Path(program).name)
    same = found is not None and os.path.exists(program) and os.path.samefile(found, program)
    return [Path(program).name if same else program, *rest]
