"""``cifar-dist doctor [RECIPE]``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cifar_dist.errors import printable
from cifar_dist.exit_codes import EXIT_DONE, EXIT_REQUEUE
from cifar_dist.verbs.arguments import RECIPE_NAME
from cifar_dist.verbs.loading import loading, say_stopped

if TYPE_CHECKING:
    from cifar_dist.training.doctor import Finding

HELP = "try the first steps of a recipe to see whether it works here and how long it will take"
COLLECTIVE = True


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s [RECIPE] [--section.field VALUE ...]"
    verb.add_argument(
        "recipe",
        nargs="?",
        type=RECIPE_NAME,
        help="name of a shipped recipe, or path of a .toml; without: check the machine only",
    )
    verb.set_defaults(settings=[])


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist import recipe
    from cifar_dist.config import Config, TrainConfig
    from cifar_dist.distributed.stop_signals import StopSignals

    config: Config | None = None
    if arguments.recipe is not None or arguments.settings:
        config = recipe.load(arguments.recipe or "", arguments.settings)

    with StopSignals() as signals:
        with loading():
            from cifar_dist.distributed.agreement import StopRequested
            from cifar_dist.distributed.start import start_engine
            from cifar_dist.training.doctor import examine

        try:
            with start_engine(
                config or Config(train=TrainConfig(precision="auto")), trains=config is not None
            ) as engine:
                for finding in _each(examine(config, engine, signals)):
                    if engine.ranks.is_main:
                        print(f"{finding.what:<10} {printable(finding.text)}", flush=True)
                        if finding.advice:
                            print(f"{'':<10} warning: {printable(finding.advice)}", flush=True)
        except StopRequested:
            say_stopped(signals.received)
            return EXIT_REQUEUE
    return EXIT_DONE


def _each(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Say that something is being tried until the next finding is there."""
    while True:
        with loading("trying the next steps"):
            found = next(findings, None)
        if found is None:
            return
        yield found
