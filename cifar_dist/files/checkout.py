"""Where the program was checked out."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).parents[2]
"""The folder of this package, which has ``launch/``, ``shards/`` and ``slurm/`` beside it."""
