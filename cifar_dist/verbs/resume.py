"""``cifar-dist resume RUN [--section.field VALUE ...]``."""

from __future__ import annotations

import argparse

from cifar_dist.verbs.arguments import add_run
from cifar_dist.verbs.train import train

HELP = "continue a run with its settings, on one process or under launch CONFIG, or extend it: resume RUN"
COLLECTIVE = True


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s RUN [--section.field VALUE ...]"
    add_run(verb)
    verb.set_defaults(settings=[])


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist.run_folder import find_run
    from cifar_dist.run_folder.opening import refuse_missing_data
    from cifar_dist.runs.resume import resumed_config

    folder = find_run(arguments.run)
    config = resumed_config(folder, arguments.settings)
    if arguments.settings or not folder.is_finished():
        refuse_missing_data(folder, config.data.path, "--data.path")
    return train(config)
