"""The command that started this job, as one types it, and the one that resumes its run."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from cifar_dist.distributed.launched import launched_processes, parent_command
from cifar_dist.errors import quoted
from cifar_dist.launch.typed_launcher import VARIABLE


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


def typed_command() -> str:
    """Return the command that started this process, or the launcher above it, quoted for the shell."""
    return shlex.join(_typed())


def _words_before(words: Sequence[str], verbs: Collection[str]) -> list[str] | None:
    """Return the words before the first verb; None if there is none."""
    place = next((place for place, word in enumerate(words) if word in verbs), None)
    return None if place is None else list(words[:place])


def _without_fresh(words: Sequence[str]) -> list[str]:
    """Drop ``--run.fresh``, which refuses a run that exists, and its value."""
    kept = [word for word in words if not word.startswith("--run.fresh=")]
    if "--run.fresh" in kept:
        place = kept.index("--run.fresh")
        del kept[place : place + 1 + (kept[place + 1 : place + 2] == ["true"])]
    return kept


def _typed() -> list[str]:
    above = parent_command()
    launchers = {"accelerate", "torchrun"} & {Path(word).name for word in above[:2]}
    is_launched = launchers and (launched_processes() > 1 or "accelerate" in launchers)
    return _shorten(above if is_launched else sys.orig_argv)


def _shorten(words: Sequence[str]) -> list[str]:
    """Drop the interpreter of a script that starts by itself, and the folder of a program that the PATH finds."""
    program, *rest = words
    if rest and Path(rest[0]).suffix == "" and os.access(rest[0], os.X_OK) and Path(rest[0]).is_file():
        program, *rest = rest
    found = shutil.which(Path(program).name)
    same = found is not None and os.path.exists(program) and os.path.samefile(found, program)
    return [Path(program).name if same else program, *rest]
