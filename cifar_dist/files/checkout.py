"""Where this package is, and where the files of the repository are that are not in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).parents[2]
"""The folder that contains this package: the repository, unless the package is installed without it."""

HOME: Final = "CIFAR_DIST_HOME"
"""Variable with the repository, which ``slurm/train.sbatch`` reads as well."""


def repository() -> Path:
    """Return the folder with ``launch/``, ``shards/`` and ``slurm/``.

    It is that of ``CIFAR_DIST_HOME``, else the folder of this package, else the working folder. Of the last two the
    first that is the root of the repository counts, and the folder of this package if neither is.
    """
    if home := os.environ.get(HOME):
        return Path(home).resolve()
    here = (CHECKOUT, Path.cwd())
    return next((folder for folder in here if (folder / "slurm" / "train.sbatch").is_file()), CHECKOUT)
