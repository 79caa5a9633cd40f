"""The GPUs of this machine, as its driver lists them."""

from __future__ import annotations

from pathlib import Path


def count_gpus(devices: Path = Path("/dev")) -> int:
    """Count the NVIDIA GPUs of this machine, whether or not torch can use them.

    Args:
        devices: folder of the machine's devices.
    """
    return len(list(devices.glob("nvidia[0-9]*")))
