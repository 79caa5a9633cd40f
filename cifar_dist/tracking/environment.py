"""``environment.json``: versions, machine, processes and command of a run; never a secret."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from cifar_dist.files import write_atomic
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.timeline import utc

_PACKAGES = ("cifar-dist", "torch", "torchvision", "accelerate", "deepspeed", "webdataset", "wandb", "numpy")
_VARIABLES = re.compile(
    r"(SLURM|NCCL|GLOO|G?OMP|MKL|CUDA|ACCELERATE|DEEPSPEED|FSDP|TORCH|PYTORCH|TORCHELASTIC)_\w+"
    r"|(LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|JWT|CREDENTIAL|AUTH|SIGNATURE", re.IGNORECASE)
# The user part of a URL (a password may contain an @), and NAME=value inside a value, as in SLURM_EXPORT_ENV.
_USER_IN_URL = re.compile(r"(://)[^/\s]+@")
_SECRET_IN_TEXT = re.compile(rf"(\w*(?:{_SECRET.pattern})\w*=)[^,;&\s]+", re.IGNORECASE)


def write_environment(path: Path, facts: RunFacts) -> None:
    """Write the ``environment.json`` of this process and its run to ``path``."""
    text = json.dumps({"written": utc(), "run": asdict(facts), **describe()}, indent=2)
    write_atomic(path, text + "\n")


def describe() -> dict[str, object]:
    """Describe the versions and the machine of this process, as JSON values."""
    return {
        "python": platform.python_version(),
        "versions": _versions(_PACKAGES),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
        "command": [_masked(word) for word in sys.orig_argv],
        "folder": os.getcwd(),
        "commit": _commit(),
        "variables": relevant(os.environ),
    }


def relevant(variables: Mapping[str, str]) -> dict[str, str]:
    """Select the environment variables that affect a run, except those whose name suggests a secret."""
    return {
        name: _masked(value)
        for name, value in sorted(variables.items())
        if _VARIABLES.fullmatch(name) and not _SECRET.search(name)
    }


def _masked(text: str) -> str:
    return _SECRET_IN_TEXT.sub(r"\1***", _USER_IN_URL.sub(r"\1***@", text))


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _commit() -> str | None:
    """Return the commit of the checkout that this code runs from, with ``-dirty`` appended if files differ."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
