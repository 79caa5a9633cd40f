"""``cifar-dist train RECIPE [--section.field VALUE ...]``."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from cifar_dist.errors import CollectiveTimeoutError, LostRankError, UserError
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.launch.launched import is_main_process, launched_processes
from cifar_dist.runs.reports import draw_if_outdated
from cifar_dist.terminal.notice import warn
from cifar_dist.verbs.arguments import RECIPE_NAME
from cifar_dist.verbs.loading import loading

if TYPE_CHECKING:
    from cifar_dist.config import Config

HELP = "train a recipe, or resume it: train RECIPE [--section.field VALUE ...]"
COLLECTIVE = True
USAGE = "usage: cifar-dist train RECIPE [--section.field VALUE ...]"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", type=RECIPE_NAME)  # for tab completion only
    verb.set_defaults(words=[], settings=[])


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist import recipe

    rest, section = split_help(arguments.words)
    if rest and rest[0].startswith(("--local_rank", "--local-rank")):
        raise UserError(
            f"the launcher added {rest[0]}; use: deepspeed --no_local_rank, or cifar-dist launch zero2 RECIPE"
        )
    if rest and rest[0].startswith("-"):
        raise UserError(f"the recipe must come first, before its settings; {USAGE}")
    if section is not None:
        return _print_help(rest, section)
    if not rest:
        raise UserError(f"name a recipe: one that cifar-dist recipes lists, or the path of a .toml; {USAGE}")
    return train(recipe.load(rest[0], rest[1:]))


def train(config: Config) -> int:
    """Train the run of a config, from its start or its last checkpoint; return the exit code. Collective.

    A finished run is named, with the settings that have no effect on it any more, and nothing in its folder changes,
    unless its report is outdated, its data is in another place now, or W&B may lack metrics of it.
    """
    from cifar_dist.distributed.stop_signals import StopSignals
    from cifar_dist.run_folder import RunFolder

    run = RunFolder.of(config)
    with StopSignals() as signals:  # before torch is loaded, so that no early request is lost
        with loading():
            from cifar_dist.distributed.collective_timeout import waits_explained
            from cifar_dist.distributed.start import start_engine
            from cifar_dist.training.continuation import is_finished
            from cifar_dist.training.trainer import Trainer

        if launched_processes() == 1 and is_finished(config):  # which needs no device or engine any more
            with signals.ending_waits(at_once=True):
                _update_finished(config)
            draw_if_outdated(run)
            return EXIT_DONE
        with start_engine(config, signals) as engine:
            ranks = engine.ranks
            if ranks.run_on_main(lambda: is_finished(config)):
                code = EXIT_DONE
                with signals.ending_waits(at_once=True):
                    ranks.run_on_main(lambda: _update_finished(config))
            else:
                with loading("opening the data"):
                    trainer = Trainer(config, engine)
                code = trainer.run()
            # A launcher kills the ranks that stay longer than the first to exit with 75, so all of them wait. The code
            # is agreed: one that waits too long, or for a rank that was killed, ends with it, too.
            with suppress(CollectiveTimeoutError, LostRankError), waits_explained(config.run.collective_timeout):
                ranks.run_on_main(lambda: draw_if_outdated(run))
    return code


def _update_finished(config: Config) -> None:
    """Name a finished run, write down where its data is, and send what W&B lacks."""
    from cifar_dist.run_folder import RunFolder
    from cifar_dist.tracking.mirrors import complete_wandb
    from cifar_dist.training.continuation import move_data, notes_on_finished

    run = RunFolder.of(config)
    moved = move_data(config)
    finished = f"{run.path} is finished already; another --run.name starts a new run"
    print(finished, *filter(None, [moved]), *notes_on_finished(config), sep="\n", flush=True)
    complete_wandb(run, partial(print, flush=True), warn)


def split_help(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Split off ``--help [SECTION]``; the section is empty for all, and None if no help is requested."""
    from cifar_dist.config import Config
    from cifar_dist.config.choice import field_names

    at = next((place for place, word in enumerate(words) if word in ("-h", "--help")), None)
    if at is None:
        return list(words), None
    before, after = words[:at], words[at + 1 :]
    # `--help demo` requests help on a recipe, `--help optim` on a section.
    if after and not after[0].startswith("-") and (before or after[0].partition(".")[0] in field_names(Config)):
        return [*before, *after[1:]], after[0]
    return [*before, *after], ""


def _print_help(rest: Sequence[str], section: str) -> int:
    from cifar_dist import recipe
    from cifar_dist.config import Config
    from cifar_dist.config.help import describe, overview

    config = recipe.load(rest[0], rest[1:]) if rest else Config()
    if not is_main_process():
        return EXIT_DONE
    if section:
        print(describe(config, section))
        return EXIT_DONE
    print(f"{USAGE}\n       cifar-dist train RECIPE --help SECTION\n")
    print("Train a recipe. Running the same command again resumes it.")
    if rest and rest[0] in recipe.shipped():
        print(textwrap.fill(f"{rest[0]}: {recipe.read_head(rest[0]).what}.", 79, subsequent_indent="  "))
    print("RECIPE is a name that `cifar-dist recipes` lists, or the path of a .toml.\n")
    print(overview(config))
    return EXIT_DONE
