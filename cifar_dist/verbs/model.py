"""``cifar-dist model``."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_dist.data.image_files import MAX_SIDE
from cifar_dist.errors import UserError, printable
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.models.registry import names
from cifar_dist.terminal.screen import table_width
from cifar_dist.verbs.arguments import RECIPE_NAME, Name, at_least, user_path
from cifar_dist.verbs.loading import loading
from cifar_dist.verbs.output import check_writable, stream_for_people, writing

if TYPE_CHECKING:
    from cifar_dist.config import ModelConfig
    from cifar_dist.config.tree import Tree

HELP = "show a network layer by layer: shapes, parameters, mult-adds, receptive field"
COLLECTIVE = False

_CIFAR10 = (10, (32, 32, 3))  # the default number of classes, and image shape


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s (NAME | --recipe RECIPE) [options] [--section.field VALUE ...]"
    verb.add_argument(
        "name", nargs="?", type=Name(names), metavar="NAME", help="a model, torchvision:NAME or timm:NAME; or a recipe"
    )
    verb.add_argument(
        "--recipe", type=RECIPE_NAME, help="the model of this recipe; required if a model has the same name"
    )
    verb.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help='for example "widths=[64, 128]"')
    # The bounds keep the network within memory.
    verb.add_argument(
        "--classes", type=at_least(1, most=10**6), metavar="N", help="default: those of the recipe's dataset, or 10"
    )
    verb.add_argument(
        "--size", type=at_least(1, most=MAX_SIDE), metavar="PIXELS", help="side of an image (default: as above, or 32)"
    )
    verb.add_argument(
        "--channels", type=at_least(1, most=4096), metavar="C", help="channels of an image (default: as above, or 3)"
    )
    verb.add_argument("--batch", type=at_least(1), default=1, metavar="N", help="images in a batch (default: 1)")
    verb.add_argument("--receptive-field", action="store_true", help="show only kernel, stride, jump and field")
    verb.add_argument(
        "--csv", type=user_path, metavar="OUT", help="also write the table to this file, receptive fields with formulae"
    )
    verb.set_defaults(settings=[])


def run(arguments: argparse.Namespace) -> int:
    if arguments.csv:
        check_writable(arguments.csv, "--csv", arguments.recipe or arguments.name or "")
    from cifar_dist.config.overrides import parse_overrides

    if arguments.size and "model.image_size" in parse_overrides(arguments.settings):
        raise UserError("--size and --model.image_size both give the side of the network's images; give one of them")
    model, classes, (height, width, channels) = _resolve(arguments)
    if model.image_size:
        height = width = model.image_size
    if arguments.size:
        height = width = arguments.size
    shape = (height, width, arguments.channels or channels)
    classes = arguments.classes or classes

    with loading():
        from cifar_dist.files.outputs import write_output
        from cifar_dist.models import build, check_fits
        from cifar_dist.models.layer_tables import (
            field_table,
            layer_table,
            layers_csv,
            receptive_field_csv,
            totals,
        )
        from cifar_dist.models.summary import summarize
        from cifar_dist.models.transfer import freeze_backbone

    # On the meta device, without pretrained weights or model.conv: none of these changes shapes or counts.
    network = build(model.name, classes=classes, channels=shape[2], options=model.options).to("meta")
    check_fits(network, model.name, shape=shape, classes=classes)
    if model.freeze:
        freeze_backbone(network)
    summary = summarize(network, shape, arguments.batch)
    if arguments.csv:
        text = receptive_field_csv(summary) if arguments.receptive_field else layers_csv(summary)
        with writing(arguments.csv):
            write_output(arguments.csv, text)
    people = stream_for_people(arguments.csv)
    tabulate = field_table if arguments.receptive_field else layer_table
    title = printable(f"{model.name}: {classes} classes, images of {height}x{width}x{shape[2]}")
    sums = "".join(f"{what:<16} {text}\n" for what, text in totals(summary, arguments.batch))
    print(f"{title}\n\n{tabulate(summary, table_width(people))}\n{sums}", end="", file=people, flush=True)
    return EXIT_DONE


def _resolve(arguments: argparse.Namespace) -> tuple[ModelConfig, int, tuple[int, int, int]]:
    """Return the model, the number of classes, and the image shape (height, width, channels)."""
    from cifar_dist import recipe
    from cifar_dist.config.build import build_config
    from cifar_dist.config.overrides import COMMAND_LINE, parse_overrides
    from cifar_dist.config.tree import put
    from cifar_dist.data.dataset_folder import is_dataset
    from cifar_dist.data.manifest import Manifest

    wrong = next((option for option in arguments.options if not re.match(r"\w+=", option)), None)
    if wrong is not None:
        raise UserError(f"--options takes KEY=VALUE, not '{wrong}'; for example --options blocks=[2,2,2]")
    settings = [*arguments.settings, *(f"--model.options.{option}" for option in arguments.options)]
    if (arguments.name is None) == (arguments.recipe is None):
        raise UserError("give one model: cifar-dist model NAME, or cifar-dist model --recipe RECIPE")
    name, of = arguments.name, arguments.recipe
    if of is None and name not in names() and (name in recipe.shipped() or name.endswith(".toml")):
        of = name
    if of is None:
        overrides = parse_overrides(settings)
        if "model.name" in overrides:
            raise UserError(f"'{name}' and --model.name both give the model; give one of them")
        tree: Tree = {}
        for key, value in {**overrides, "model.name": name}.items():
            put(tree, key, value)
        return build_config(tree, where=COMMAND_LINE).model, *_CIFAR10
    config = recipe.load(of, settings)
    packed = Path(config.data.path)
    if not is_dataset(packed):
        if not arguments.classes:
            print(f"{printable(str(packed))} is not packed: 10 classes are assumed; see --classes", file=sys.stderr)
        return config.model, *_CIFAR10

    manifest = Manifest.load(packed)
    return config.model, len(manifest.classes), manifest.shape
