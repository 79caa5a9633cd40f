"""``cifar-dist verify``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cifar_dist.errors import EXIT_DONE

HELP = "check every byte of a packed dataset"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, help="a packed dataset")


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist.data.verify import verify

    print(verify(arguments.folder))
    return EXIT_DONE
