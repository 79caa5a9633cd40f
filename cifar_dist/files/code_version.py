"""Which code this process runs: the versions of packages, and the commit of the checkout."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_COMMIT = re.compile(r"^([0-9a-f]{10})[0-9a-f]+")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those ``packages`` that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache  # a checkout may change while the code of its former commit runs
def commit() -> str | None:
    """Return the commit of the checkout that this code runs from, with ``-dirty`` appended if files differ."""
    if not _git("ls-files", Path(__file__).name):  # installed in an environment within a checkout of something else
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None


def shortened(commit: str) -> str:
    """Return the first ten digits of a commit, and what is appended to it."""
    return _COMMIT.sub(r"\1", commit)


def _git(*words: str) -> str:
    """Return what git says of the folder of this file; empty where it fails."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
