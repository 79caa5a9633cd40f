"""``cifar-dist doctor [RECIPE]``."""

from __future__ import annotations

import argparse

from cifar_dist.errors import printable
from cifar_dist.exit_codes import EXIT_DONE, EXIT_REQUEUE

HELP = "try the first steps of a recipe: whether it works here, and how long it will take"
COLLECTIVE = True


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s [RECIPE] [--section.field VALUE ...]"
    verb.add_argument("recipe", nargs="?", help="a shipped recipe, or the path of a .toml; none: machine and processes")
    verb.set_defaults(settings=[])


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist import recipe
    from cifar_dist.config import Config, TrainConfig
    from cifar_dist.distributed.stop_signals import StopSignals

    config: Config | None = None
    if arguments.recipe is not None or arguments.settings:
        config = recipe.load(arguments.recipe or "", arguments.settings)

    with StopSignals() as signals:
        from cifar_dist.distributed.agreement import StopRequested
        from cifar_dist.distributed.engine import Engine
        from cifar_dist.training.doctor import examine

        engine = Engine(
            config.train if config else TrainConfig(precision="auto"),
            clip_norm=config.optim.clip_norm if config else 0.0,
            sam_rho=config.optim.sam_rho if config else 0.0,
            processes=config.run.processes if config else 0,
        )
        try:
            for finding in examine(config, engine, signals):
                if engine.is_main:
                    print(f"{finding.what:<10} {printable(finding.text)}", flush=True)
                    if finding.advice:
                        print(f"{'':<10} warning: {printable(finding.advice)}", flush=True)
        except StopRequested:
            return EXIT_REQUEUE
        finally:
            engine.close()
    return EXIT_DONE
