"""``cifar-dist train RECIPE [--section.field VALUE ...]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cifar_dist.distributed.launch_checks import is_main_process
from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.report import draw

HELP = "train a recipe, or resume it: train RECIPE [--section.field VALUE ...]"
COLLECTIVE = True
USAGE = "usage: cifar-dist train RECIPE [--section.field VALUE ...]"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(words=[])


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist import recipe

    words: list[str] = arguments.words
    asks_help = any(word in ("-h", "--help") for word in words)
    rest = [word for word in words if word not in ("-h", "--help")]
    if rest and rest[0].startswith("-"):
        raise UserError(f"the recipe must come first, before its settings; {USAGE}")
    if asks_help:
        return _train_help(rest)
    if not rest:
        raise UserError(f"name a recipe: {', '.join(recipe.shipped())}, or the path of a .toml; {USAGE}")
    config = recipe.load(rest[0], rest[1:])

    from cifar_dist.distributed.stop_signals import StopSignals

    with StopSignals() as signals:  # before torch is loaded, so that no early request is lost
        from cifar_dist.distributed.start import start_engine
        from cifar_dist.training.trainer import Trainer

        with start_engine(config) as engine:
            code = Trainer(config, engine, signals).run()
    if code == EXIT_DONE and engine.ranks.is_main:
        draw(Path(config.run.dir) / config.run.name)
    return code


def _train_help(rest: Sequence[str]) -> int:
    import tyro

    from cifar_dist import recipe
    from cifar_dist.config import Config
    from cifar_dist.config.named_items import spelled_out

    if is_main_process():
        print(f"{USAGE}\n\nRecipes: {', '.join(recipe.shipped())}, or the path of a .toml\n")
        print("The settings depend on what the recipe chooses: RECIPE --optim.name muon --help shows those of muon.\n")
        default = recipe.load(rest[0], rest[1:]) if rest else Config()
        shown = spelled_out(default)
        tyro.cli(type(shown), default=shown, args=["--help"], prog="cifar-dist train RECIPE")
    return EXIT_DONE
