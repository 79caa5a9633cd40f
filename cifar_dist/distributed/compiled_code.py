"""Where ``torch.compile`` keeps what it has compiled, so that a run that is killed and resumed finds it again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_code() -> None:
    """Keep compiled code in the user's cache, which outlives the job. What the user has set takes precedence.

    Torch's default is the machine's folder for temporary files, which a job's end or a reboot may clear. A file in it
    is complete or absent, so processes share it, and killing one of them leaves nothing half-written.
    """
    if _VARIABLE in os.environ:
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home, "cifar-dist", "compiled")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that cannot be written, or a user without one: torch's default remains
        return
    os.environ[_VARIABLE] = str(folder)
