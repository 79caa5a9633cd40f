"""``cifar-dist preview DATASET RECIPE [--section.field VALUE ...]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import add_recipe, at_least, picture_path, user_path
from cifar_dist.verbs.loading import loading
from cifar_dist.verbs.output import check_writable, writing

HELP = "draw training images as a recipe augments them"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s DATASET RECIPE [options] [--section.field VALUE ...]"
    verb.add_argument("dataset", type=user_path, help="a packed dataset: its folder, or its name in shards/")
    add_recipe(verb)
    verb.add_argument("--samples", type=at_least(1), default=8, metavar="N", help="number of images (default: 8)")
    verb.add_argument("--versions", type=at_least(1), default=6, metavar="N", help="epochs of each image (default: 6)")
    verb.add_argument(
        "--seed",
        type=at_least(0),
        metavar="S",
        help="selects the images and their augmentation (default: the recipe's)",
    )
    verb.add_argument(
        "--out", type=picture_path, metavar="FILE.png", help=".png, .svg or .pdf (default: preview-RECIPE.png)"
    )
    verb.set_defaults(settings=[])


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist import recipe
    from cifar_dist.config.overrides import parse_overrides

    seed = [] if arguments.seed is None else [f"--run.seed={arguments.seed}"]
    if seed and "run.seed" in parse_overrides(arguments.settings):
        raise UserError("--seed and --run.seed are one setting; give one of them")
    config = recipe.load(arguments.recipe, [*arguments.settings, *seed])
    out = arguments.out or Path(f"preview-{Path(arguments.recipe).stem}.png")
    named = Path("shards") / arguments.dataset
    dataset = named if not Path(arguments.dataset).is_dir() and named.is_dir() else arguments.dataset
    check_writable(out, "--out", arguments.recipe, dataset)

    with loading():
        from cifar_dist.data.manifest import Manifest
        from cifar_dist.report.preview import draw_preview

    manifest = Manifest.load(dataset)
    samples, versions = arguments.samples, arguments.versions
    with loading("drawing"), writing(out):
        draw_preview(config, manifest, out, samples=samples, versions=versions)
    print(out)
    return EXIT_DONE
