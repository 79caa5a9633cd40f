"""The command that started this job, as one types it again to resume it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cifar_dist.distributed.launch_checks import launched_processes, parent_command

VARIABLE = "CIFAR_DIST_COMMAND"
"""Environment variable in which a program that starts runs passes on what was typed; empty if nobody typed anything."""


def resume_command() -> str:
    """Return the command that resumes the run of this process, quoted for the shell; empty if there is none."""
    return os.environ[VARIABLE] if VARIABLE in os.environ else typed_command()


def typed_command() -> str:
    """Return the command that started this process, or the launcher above it, quoted for the shell."""
    above = parent_command()
    launchers = {"accelerate", "torchrun"} & {Path(word).name for word in above[:2]}
    if launchers and (launched_processes() > 1 or "accelerate" in launchers):
        return shlex.join(_shorten(above))
    return shlex.join(_shorten(sys.orig_argv))


def _shorten(words: Sequence[str]) -> list[str]:
    """Drop the interpreter of a script that starts by itself, and the folder of a program that the PATH finds."""
    program, *rest = words
    if rest and Path(rest[0]).suffix == "" and os.access(rest[0], os.X_OK) and Path(rest[0]).is_file():
        program, *rest = rest
    found = shutil.which(Path(program).name)
    same = found is not None and os.path.exists(program) and os.path.samefile(found, program)
    return [Path(program).name if same else program, *rest]
