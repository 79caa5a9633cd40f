"""``cifar-dist index``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE

HELP = "write the manifest of WebDataset tars that were made elsewhere"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, help="where the tars lie; train, val or test in a name says the split")
    verb.add_argument("--classes", type=Path, metavar="FILE", help="names of the classes, one a line, in label order")


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist.data.index import index

    manifest = index(arguments.folder, classes=_lines(arguments.classes) if arguments.classes else ())
    print(f"indexed {manifest.name}: {manifest.shown}")
    return EXIT_DONE


def _lines(path: Path) -> list[str]:
    """The lines of a text that are not empty; raises UserError where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); it has the name of a class in each line") from None
    return [line.strip() for line in lines if line.strip()]
