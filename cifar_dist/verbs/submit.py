"""``cifar-dist submit RECIPE``: submit one run as a Slurm job, after checking its settings, data and model."""

from __future__ import annotations

import argparse
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import RECIPE_NAME, split_settings
from cifar_dist.verbs.loading import loading

HELP = "train a recipe on a Slurm cluster; accepts sbatch options"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s RECIPE [sbatch options] [--section.field VALUE ...]"
    verb.add_argument("recipe", type=RECIPE_NAME, help="name of a shipped recipe, or path of a .toml; must come first")
    verb.set_defaults(settings=[])


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist import recipe
    from cifar_dist.config.changes import LENGTH

    with loading():
        from cifar_dist.data.manifest import Manifest
        from cifar_dist.models import check_builds
        from cifar_dist.run_folder import RunFolder
        from cifar_dist.slurm.preflight import config_in_job
        from cifar_dist.slurm.sbatch import submit
        from cifar_dist.training.continuation import is_finished

    settings, options = split_settings(arguments.settings)
    config = recipe.load(arguments.recipe, settings)
    manifest = Manifest.load(config.data.path)
    check_builds(config.model, shape=manifest.shape, classes=len(manifest.classes))
    folder = RunFolder(Path(config.run.dir) / config.run.name)
    if "run.name" in recipe.parse_overrides(settings) and folder.config.is_file():
        folder.refuse_other_settings(config, besides=LENGTH)
        if is_finished(config):
            raise UserError(f"{folder.path} is finished already; another --run.name starts a new run")
    words = [arguments.recipe, *settings]
    job = submit("train.sbatch", words, options, otherwise=f"cifar-dist launch ddp {' '.join(words)}")
    run_config = config_in_job(arguments.recipe, settings, job).run
    print(f"job {job}: {Path(run_config.dir) / run_config.name}")
    if not any(option.startswith(("-o", "--output")) for option in options):
        print(f"watch it: tail -F slurm-{job}.out; cifar-dist runs list {run_config.dir}")
    return EXIT_DONE
