"""Where ``torch.compile`` keeps what it has compiled, so that a run that is killed and resumed finds it again."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Final

_VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_code(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Keep compiled code in the user's cache, which outlives the job. What the user has set takes precedence.

    Torch's default is the machine's folder for temporary files, which a job's end or a reboot may clear. A file in it
    is complete or absent, so processes share it, and killing one of them leaves nothing half-written.

    Args:
        cpuinfo: describes the CPU. Each kind has a folder of its own: nodes share the user's cache, g++ may use every
            instruction of its CPU, and torch tells only vector extensions apart.
    """
    if _VARIABLE in os.environ:
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home, "cifar-dist", "compiled", _instructions(cpuinfo))
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that cannot be written, or a user without one: torch's default remains
        return
    os.environ[_VARIABLE] = str(folder)


def _instructions(cpuinfo: Path) -> str:
    """Return a name for the instructions that a CPU has."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"cpu-{zlib.crc32(flags.encode()):08x}"
