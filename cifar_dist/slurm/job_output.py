"""The lines of these scripts in a job's output, which Slurm appends to, and what a later attempt reads in them."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

from cifar_dist.run_folder import RunFolder
from cifar_dist.slurm.requeue import named

_PREFIX = "slurm/train.sbatch: "


def say(line: str) -> None:
    """Print a line of these scripts."""
    print(f"{_PREFIX}{line}", file=sys.stderr)


def describe_attempt(job: str, number: int, nodes: str, folder: RunFolder) -> str:
    """Return the line that an attempt begins with; :func:`folder_named_before` finds the run in it."""
    return f"job {job}, attempt {number}, on {nodes}: {folder.path} from {named(folder.newest_checkpoint())}"


def folder_named_before(job: str) -> RunFolder | None:
    """Return the folder of the run that an earlier attempt named in the job's output.

    None if there is none, as in a container, whose output goes to a pipe.
    """
    if not stat.S_ISREG(os.fstat(2).st_mode):
        return None
    text = Path("/proc/self/fd/2").read_text(encoding="utf-8", errors="surrogateescape")
    line = rf"^{_PREFIX}job {re.escape(job)}, attempt \d+, on \S+: (.+) from (?:the start|step-\d+)$"
    folders = [RunFolder(Path(path)) for path in re.findall(line, text, re.MULTILINE)]
    return next((folder for folder in reversed(folders) if folder.exists()), None)
