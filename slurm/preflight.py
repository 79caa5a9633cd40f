"""Check a job before its nodes start: ``preflight.py JOB_ID RECIPE [--section.field VALUE ...]``.

Prints the run's folder. A wrong recipe, setting or dataset is said in one line; the exit code is then 2.
"""

import sys
from pathlib import Path

from cifar_dist import recipe
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import EXIT_DONE, UserError
from cifar_dist.process_exit import exit_with
from cifar_dist.slurm.sbatch import config_in_job


def main() -> int:
    """Refuse what cannot be trained, else print ``runs/NAME``."""
    job, *words = sys.argv[1:]
    if not words:
        raise UserError(f"which recipe? {', '.join(recipe.shipped())}, or the path of a .toml")
    config = config_in_job(words[0], words[1:], job)
    Manifest.load(config.data.path)
    print(Path(config.run.dir) / config.run.name)
    return EXIT_DONE


if __name__ == "__main__":
    exit_with(main)
